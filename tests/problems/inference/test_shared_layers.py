"""Layers that candidates have in common: which they are, and that running them once changes
nothing.
"""

import pytest
import torch
from builders import build_model

from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.adapters.read_adapter import read_expert
from evox_evogm.problems.adapters.stacked_modules import stack_experts
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.shared_layers import (
    RowExpander,
    count_shared_layers,
    decoder_layers,
)

pytestmark = pytest.mark.language_model

COEFFICIENTS = torch.tensor([[0.7, -1.2], [0.0, 0.0], [-0.4, 0.9], [1.5, 0.3]])
PROMPTS = ["zz?", "Question: 3 + 3 is?\nAnswer:", "Question: is 7 prime?\nAnswer:", "Question:"]
LAST_LAYERS = {
    "llama": ["q_proj", "up_proj"],
    "qwen2": ["q_proj", "up_proj"],
    "gemma": ["q_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
}


@pytest.fixture(params=list(LAST_LAYERS))
def adapted_from_layer_2(request, make_adapter):
    """A model of four layers, and two experts that touch only the last two."""
    architecture = request.param
    is_gpt2 = architecture == "gpt2"
    settings = {"n_layer": 4} if is_gpt2 else {"num_hidden_layers": 4}
    experts = []
    for seed in range(2):
        folder = make_adapter(
            f"{architecture}{seed}",
            build_model(architecture, **settings),
            seed=seed,
            target_modules=LAST_LAYERS[architecture],
            layers_to_transform=[2 + seed, 3],
            layers_pattern="h" if is_gpt2 else "layers",
        )
        experts.append(read_expert(folder))
    model = build_model(architecture, **settings)
    return model, stack_experts(experts, torch.float32, torch.device("cpu"))


def count_rows_of_layers(model):
    """For each decoder layer, the rows that it sees from now on, a list that grows."""
    _, layers = decoder_layers(model)
    rows = [[] for _ in layers]

    def count_rows(index):
        def hook(layer, inputs, output):
            hidden = output[0] if isinstance(output, tuple) else output
            rows[index].append(len(hidden))

        return hook

    for index, layer in enumerate(layers):
        layer.register_forward_hook(count_rows(index))
    return rows


def test_layers_below_the_first_adapted_one_run_once_for_all_candidates(
    adapted_from_layer_2, tokenizer
):
    model, modules = adapted_from_layer_2
    assert count_shared_layers(model, modules) == 2
    scorer = LanguageModel(model, tokenizer, batch_tokens=400)
    requests = []
    candidates = []
    for candidate in range(len(COEFFICIENTS)):
        for prompt in PROMPTS:
            requests.append((scorer.prompt_tokens(prompt), (7, 9)))
            candidates.append(candidate)
    rows = count_rows_of_layers(model)
    with merged(model, modules, COEFFICIENTS) as population:
        with scorer.candidates(population.select, shared_layers=2):
            together = scorer.likelihoods(requests, candidates).log_probability
        counts = [sum(seen) for seen in rows]
        with scorer.candidates(population.select):
            plain = scorer.likelihoods(requests, candidates).log_probability
    torch.testing.assert_close(together, plain, rtol=1e-4, atol=1e-4)
    assert counts == [4, 4, 16, 16]
    assert not torch.allclose(plain[:4], plain[4:8], atol=1e-3)
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_what_has_a_row_per_text_is_repeated_and_the_rest_stays():
    expand = RowExpander(torch.tensor([1, 0, 1]))
    hidden = torch.tensor([[1.0], [2.0]])
    positions = torch.tensor([[5]])  # one row for all texts
    repeated, (same, nested), number = expand((hidden, (positions, (hidden,)), 7))
    assert repeated.tolist() == [[2.0], [1.0], [2.0]]
    assert same is positions and number == 7
    assert nested[0] is repeated


def test_an_adapted_embedding_leaves_nothing_to_share():
    model = build_model()
    adapted = ["model.embed_tokens", "model.layers.1.self_attn.q_proj"]
    assert count_shared_layers(model, adapted) == 0
    assert count_shared_layers(model, ["model.layers.0.self_attn.q_proj"]) == 0
    assert count_shared_layers(model, ["lm_head"]) == 1  # the last layer hands all rows on
    assert count_shared_layers(model, []) == 1
