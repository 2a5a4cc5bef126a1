"""Layers with the same input share a product: beside peft, and with guesses that are wrong."""

import pytest
import torch
from builders import build_model, stack_folders

from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.adapters.population import Population
from evox_evogm.problems.adapters.shared_inputs import (
    SharedInput,
    find_shared_inputs,
)
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.shared_batches import share_batches

TOKENS = torch.arange(1, 28).reshape(3, 9)
WEIGHTS = [[0.5, -0.8, 1.7], [-1.1, 0.4, 0.2]]
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapters(make_adapter):
    """Three, of which the first two have other layers and ranks."""
    return [
        make_adapter("p0", seed=0, r=2, lora_alpha=7, target_modules=["q_proj", "up_proj"]),
        make_adapter("p1", seed=1, r=5, lora_alpha=3, target_modules=["k_proj", "q_proj"]),
        make_adapter("p2", seed=2, r=4, lora_alpha=4, target_modules=EVERY),
    ]


@torch.no_grad()
def test_rows_of_two_candidates_have_the_logits_of_plain_peft_in_float64(make_adapter):
    from peft import PeftModel

    folders = adapters(make_adapter)
    names = ["p0", "p1", "p2"]
    plain = PeftModel.from_pretrained(build_model().double(), folders[0], adapter_name="p0")
    for name, folder in zip(names[1:], folders[1:], strict=True):
        plain.load_adapter(folder, adapter_name=name)
    expected = []
    for index, weights in enumerate(WEIGHTS):
        merge = f"merge{index}"
        plain.add_weighted_adapter(names, weights, merge, combination_type="cat")
        plain.set_adapter(merge)
        expected.append(plain.double()(TOKENS).logits)
    model = build_model().double()
    modules = stack_folders(folders, torch.float64)
    owners = [1, 0, 1]
    with merged(model, modules, torch.tensor(WEIGHTS, dtype=torch.float64)) as population:
        assert len(population.shared_inputs["model.layers.0.self_attn.q_proj"].names) == 3
        assert len(population.shared_inputs["model.layers.1.mlp.up_proj"].names) == 2
        population.select(owners)
        found = model(TOKENS).logits
        assert all(group.is_right for group in population.shared_inputs.values())
        again = model(TOKENS).logits
    for row, owner in enumerate(owners):
        # s is a float32 number here.
        torch.testing.assert_close(found[row], expected[owner][row], rtol=1e-5, atol=1e-5)
    assert torch.equal(found, again)


class OtherInputs(torch.nn.Module):
    """Layers q, k and v, of which v is given another tensor."""

    def __init__(self, changes_input: bool):
        super().__init__()
        self.changes_input = changes_input
        for name in ("q", "k", "v"):
            setattr(self, name, torch.nn.Linear(6, 4))

    def forward(self, x):
        found = self.q(x) + self.k(x)
        if self.changes_input:
            x.mul_(2)  # the same tensor, with other numbers
        else:
            x = 2 * x
        return found + self.v(x)

    def get_output_embeddings(self):
        return None


@torch.no_grad()
@pytest.mark.parametrize("changes_input", [True, False])
def test_a_wrong_guess_changes_no_result(changes_input, make_adapter):
    torch.manual_seed(0)
    layers = OtherInputs(changes_input)
    q_proj = "model.layers.0.self_attn.q_proj"
    like = stack_folders(adapters(make_adapter))[q_proj]
    modules, pop = {}, torch.tensor(WEIGHTS)
    for name in ("q", "k", "v"):
        rank = like.rank
        a, b = torch.randn(rank, 6), torch.randn(4, rank)
        modules[name] = type(like)(a, b, like.coefficient, like.scale, embedding=False)
    x = torch.randn(2, 3, 6)
    expected = []
    for row, coefficients in enumerate(pop):
        weights = coefficients[like.coefficient] * like.scale
        total = torch.zeros(3, 4)
        for name, given in (("q", x[row]), ("k", x[row]), ("v", 2 * x[row])):
            layer, module = getattr(layers, name), modules[name]
            total += layer(given) + ((given @ module.a.T) * weights) @ module.b.T
        expected.append(total)
    with merged(layers, modules, pop) as population:
        for _ in range(2):
            population.select([0, 1])
            found = layers(x.clone())
            torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)
        assert not population.shared_inputs["q"].is_right


def test_channels_are_used_once_and_in_their_pass_only():
    group = SharedInput(["q", "k"], [torch.ones(2, 3), torch.ones(1, 3)])
    x, calls = torch.ones(1, 3), []

    def make(a, names):
        calls.append(names)
        return x @ a.mT

    assert group.channels("q", x, 1, make).shape == (1, 2)
    assert group.channels("k", x, 1, make).shape == (1, 1)
    assert calls == [("q", "k")]
    group.channels("q", x, 2, make)
    group.channels("k", x, 3, make)  # of another pass: those of the second are not taken
    assert calls == [("q", "k"), ("q", "k"), ("k",)]


def test_layers_of_other_parents_or_widths_share_nothing():
    factors = {
        "0.q_proj": torch.ones(1, 3),
        "1.k_proj": torch.ones(1, 3),
        "0.v_proj": torch.ones(1, 4),
        "0.gate_proj": torch.ones(1, 3),
    }
    assert find_shared_inputs(factors) == {}


def test_populations_share_the_joined_factors_of_the_stack(make_adapter):
    modules = stack_folders(adapters(make_adapter))
    first = Population(modules, torch.tensor(WEIGHTS))
    second = Population(modules, torch.tensor(WEIGHTS[:1]))
    groups = {id(group): group for group in first.shared_inputs.values()}.values()
    assert len(groups) == 4  # q, k, v and gate, up of two layers
    for group in groups:
        same = second.shared_inputs[group.names[0]]
        rows = torch.cat([modules[name].a for name in group.names])
        assert torch.equal(group.a, rows)
        assert group.a.data_ptr() == same.a.data_ptr() == modules[group.names[0]].a.data_ptr()
    assert first.bytes_copied == second.bytes_copied == 0


def test_a_part_of_a_group_is_joined_anew(make_adapter):
    """As where some modules are in the weights, and in whatever order they come."""
    modules = stack_folders(adapters(make_adapter))
    backwards = dict(reversed(modules.items()))
    some = {name: one for name, one in modules.items() if "v_proj" not in name}
    for part, copied in ((backwards, False), (some, True)):
        population = Population(part, torch.tensor(WEIGHTS))
        for name, group in population.shared_inputs.items():
            assert torch.equal(group.a[group.places[name]], modules[name].a)
            assert group.is_copy == (copied and "self_attn" in name)
    # A of q and k of two layers: ranks 2 + 5 + 4 and 5 + 4, of 16 inputs.
    assert population.bytes_copied == 2 * 4 * (11 + 9) * 16


def test_factors_that_are_copied_leave_passes_less_memory(make_adapter, tokenizer):
    """No candidate uses the second of three experts, so that the others are copied."""
    scorer = LanguageModel(build_model(), tokenizer, max_memory=2**20)
    modules = stack_folders(adapters(make_adapter))
    pop = torch.tensor([[0.5, 0.0, 1.7], [-1.1, 0.0, 0.2]])
    # In each of two layers q, k, v, o, gate, up and down: R (D_in + D_out).
    attention = 6 * (16 + 16) + 4 * (16 + 8) + 4 * (16 + 8) + 4 * (16 + 16)
    mlp = 4 * (16 + 32) + 6 * (16 + 32) + 4 * (32 + 16)
    values = 2 * (attention + mlp)
    with share_batches(scorer, modules, pop) as population:
        assert population.bytes_copied == 4 * values
        assert scorer.max_memory == scorer.batching.max_memory == 2**20 - 4 * values
    assert scorer.max_memory == 2**20
    with share_batches(scorer, modules, torch.tensor(WEIGHTS)):
        assert scorer.max_memory == 2**20


def test_modules_with_the_same_channels_have_one_table_of_weights(make_adapter):
    folder = make_adapter("all", r=2, target_modules=EVERY)
    population = Population(stack_folders([folder]), torch.tensor([[0.5], [0.25]]))
    assert len(population.weights) == 14
    assert len({id(table) for table in population.weights.values()}) == 1


@torch.no_grad()
def test_derivatives_share_no_products(make_adapter):
    model, modules = build_model(), stack_folders(adapters(make_adapter))
    with (
        torch.enable_grad(),
        merged(model, modules, torch.tensor(WEIGHTS), own_rows=True) as population,
    ):
        population.select([0, 1, 0])
        model(TOKENS).logits.sum().backward()
        assert all(group.made is None for group in population.shared_inputs.values())
    assert population.row_coefficients.grad.abs().min() > 0
