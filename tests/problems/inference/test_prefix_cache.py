"""Tokens and layers that requests have in common: which they are, and that running them once changes nothing."""

import pytest
import torch
from builders import build_model
from test_population import COEFFICIENTS, TARGETS

from evox_evogm.problems import Example, Task
from evox_evogm.problems.adapters.merging import merged, stack_experts
from evox_evogm.problems.adapters.read_adapter import read_expert
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.prefix_cache import common_prefix, shared_lengths
from evox_evogm.problems.inference.shared_layers import count_shared_layers, decoder_layers
from evox_evogm.problems.tasks.metrics import choice_log_probabilities, exact_match, generated_match

SHOTS = "Question: 1 + 1 is?\nAnswer: 2\n\nQuestion: 2 + 2 is?\nAnswer: 4\n\n"
QUESTIONS = [
    "Question: 3 + 3 is?\nAnswer:",
    "Question: is 7 prime?\nAnswer:",
    "Question: zz?\nAnswer:",
]


def test_the_common_prefix_of_rows():
    assert common_prefix([(1, 2, 3, 4), (1, 2, 9), (1, 2, 3)]) == 2
    assert common_prefix([(1, 2), (1, 2, 3)]) == 2
    assert common_prefix([(1,), (2,)]) == 0


def test_continuations_of_one_prompt_share_it_up_to_its_last_token():
    rows = [(5, 6, 7, 8, 1), (5, 6, 7, 8, 2), (9, 6, 7, 8, 1), (9, 6, 7, 8, 2)]
    assert shared_lengths(rows, [3] * 4, [0] * 4) == [3] * 4
    assert shared_lengths(rows, [3] * 4, [0, 1, 2, 3]) == [0] * 4  # nobody to share with


def test_few_shot_examples_are_shared_by_all_questions_of_a_candidate():
    rows = [(*range(20), token, token + 1) for token in (50, 60, 70, 80)]
    assert shared_lengths(rows, [21] * 4, [0] * 4) == [20] * 4
    assert shared_lengths(rows * 2, [21] * 8, [0] * 4 + [1] * 4) == [20] * 8


def test_a_small_saving_is_not_worth_a_pass_of_its_own():
    rows = [(1, 2, *range(token, token + 20)) for token in (50, 80)]
    assert shared_lengths(rows, [20, 20], [0, 0]) == [0, 0]
    assert shared_lengths([(1, 2, 3)], [2], [0]) == [0]


def scored_tokens(scorer, monkeypatch):
    """How many tokens go through the model from here on."""
    forward, seen = scorer.model.forward, []
    monkeypatch.setattr(
        scorer.model,
        "forward",
        lambda *inputs, **named: (
            seen.append(named["input_ids"].numel()) or forward(*inputs, **named)
        ),
    )
    return seen


@pytest.mark.parametrize("architecture", list(TARGETS))
@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
def test_sharing_prefixes_changes_no_score(architecture, batch_tokens, tokenizer, monkeypatch):
    scorer = LanguageModel(build_model(architecture), tokenizer, batch_tokens=batch_tokens)
    choices = (("A", "yes"), ("B", "not at all"), ("C", "12"))
    examples = tuple(Example(str(i), SHOTS + q, "ABC"[i], choices) for i, q in enumerate(QUESTIONS))
    shots = tuple(Example(str(i), SHOTS + q, "12") for i, q in enumerate(QUESTIONS))
    likelihood = Task("a", "1", "choice_likelihood", examples, continuation="text")
    decoded = Task("b", "1", "exact_match", shots, max_new_tokens=4)
    seen = scored_tokens(scorer, monkeypatch)
    shared = [
        choice_log_probabilities(likelihood, scorer),
        exact_match(decoded, scorer),
        generated_match(decoded, scorer),
    ]
    with_sharing = sum(seen)
    seen.clear()
    texts = [scorer.generate([scorer.prompt_tokens(e.prompt)], 4) for e in shots]
    together = scorer.generate([scorer.prompt_tokens(e.prompt) for e in shots], 4)
    monkeypatch.setattr(LanguageModel, "_may_share_prefixes", lambda self, longest, room: False)
    seen.clear()
    alone = [
        choice_log_probabilities(likelihood, scorer),
        exact_match(decoded, scorer),
        generated_match(decoded, scorer),
    ]
    for found, expected in zip(shared[0], alone[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert torch.equal(shared[1], alone[1]) and torch.equal(shared[2], alone[2])
    assert together == [text for (text,) in texts]
    if batch_tokens == 4096:
        assert with_sharing < 0.6 * sum(seen)


@pytest.mark.parametrize("window", [100, 140, 400])
def test_sliding_windows_do_not_see_padding_between_a_prefix_and_the_rest(tokenizer, window):
    import transformers as hf

    torch.manual_seed(7)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    tokens = {"vocab_size": 257, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = hf.MistralConfig(
        **shape, **tokens, num_key_value_heads=2, initializer_range=0.3, sliding_window=window
    )
    model = hf.MistralForCausalLM(config).eval()
    scorer = LanguageModel(model, tokenizer)
    prompts = [scorer.prompt_tokens(SHOTS[:60] + question) for question in ("a", *QUESTIONS)]
    expected = [
        model.generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False, eos_token_id=0)[
            0, len(prompt) :
        ]
        for prompt in prompts
    ]
    found = scorer.generate(prompts, 30)
    assert found == [tokenizer.decode(reply, skip_special_tokens=True) for reply in expected]
    assert scorer._may_share_prefixes(max(map(len, prompts)), 30) == (window == 400)


@pytest.fixture(params=["llama", "qwen2", "gemma", "gpt2"])
def adapted_from_layer_2(request, make_adapter):
    """A model of four layers, and two experts that touch only the last two."""
    settings = {"n_layer": 4} if request.param == "gpt2" else {"num_hidden_layers": 4}
    targets = {"gpt2": ["c_attn", "c_fc"], "gemma": ["q_proj", "down_proj"]}.get(
        request.param, ["q_proj", "up_proj"]
    )
    experts = [
        read_expert(
            make_adapter(
                f"{request.param}{i}",
                build_model(request.param, **settings),
                seed=i,
                target_modules=targets,
                layers_to_transform=[2 + i, 3],
                layers_pattern="h" if request.param == "gpt2" else "layers",
            )
        )
        for i in range(2)
    ]
    model = build_model(request.param, **settings)
    return model, stack_experts(experts, torch.float32, torch.device("cpu"))


def test_layers_below_the_first_adapted_one_run_once_for_all_candidates(
    adapted_from_layer_2, tokenizer
):
    model, modules = adapted_from_layer_2
    assert count_shared_layers(model, modules) == 2
    scorer = LanguageModel(model, tokenizer, batch_tokens=400)
    prompts = [scorer.prompt_tokens(text) for text in ["zz?", *QUESTIONS]]
    requests = [(prompt, (7, 9)) for _ in COEFFICIENTS for prompt in prompts]
    owners = [candidate for candidate in range(len(COEFFICIENTS)) for _ in prompts]
    rows: dict[int, list[int]] = {}
    for index, layer in enumerate(decoder_layers(model)[1]):
        layer.register_forward_hook(
            lambda _, __, output, index=index: rows.setdefault(index, []).append(
                len(output[0] if isinstance(output, tuple) else output)
            )
        )
    with merged(model, modules, COEFFICIENTS) as population:
        with scorer.candidates(population.select, 2):
            together = scorer.likelihoods(requests, owners).log_probability
        counts = {index: sum(seen) for index, seen in rows.items()}
        with scorer.candidates(population.select):
            plain = scorer.likelihoods(requests, owners).log_probability
    torch.testing.assert_close(together, plain, rtol=1e-4, atol=1e-4)
    assert counts[2] == counts[3] == 16 and counts[0] == counts[1] == 4
    assert not torch.allclose(plain[:4], plain[4:8], atol=1e-3)
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_an_adapted_embedding_leaves_nothing_to_share():
    model = build_model()
    assert (
        count_shared_layers(model, ["model.embed_tokens", "model.layers.1.self_attn.q_proj"]) == 0
    )
    assert count_shared_layers(model, ["model.layers.0.self_attn.q_proj"]) == 0
    assert count_shared_layers(model, ["lm_head"]) == 1  # the last layer hands all rows on
    assert count_shared_layers(model, []) == 1
