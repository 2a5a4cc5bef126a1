"""Layers with the same input share a product: beside peft, and with guesses that are wrong."""

import pytest
import torch
from builders import build_model, stack_folders

from evox_evogm.problems.adapters.merging import Population, merged
from evox_evogm.problems.adapters.shared_inputs import SharedInput, find_shared_inputs

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
