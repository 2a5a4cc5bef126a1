"""Rows of one batch that belong to different candidates, beside each candidate's own merge."""

import pytest
import torch
from builders import TARGETS, build_model, stack_folders, two_adapters

from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.adapters.population import Population

COEFFICIENTS = torch.tensor([[0.7, -1.2], [0.0, 0.0], [-0.4, 0.9], [1.5, 0.3]])


@pytest.fixture
def llama_modules(make_adapter):
    return stack_folders(two_adapters("llama", make_adapter))


@torch.no_grad()
@pytest.mark.parametrize("architecture", TARGETS)
def test_each_row_of_a_batch_sees_its_own_merge(architecture, make_adapter):
    model = build_model(architecture)
    modules = stack_folders(two_adapters(architecture, make_adapter))
    tokens = torch.randint(1, 257, (5, 9))
    owners = [2, 0, 3, 1, 0]
    with merged(model, modules, COEFFICIENTS) as population:
        population.select(owners)
        together = model(tokens).logits
    for row, owner in enumerate(owners):
        with merged(model, modules, COEFFICIENTS[owner]):
            alone = model(tokens[row : row + 1]).logits[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-4)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("architecture", TARGETS)
def test_a_module_that_sees_the_batch_without_its_row_dimension_gets_the_same_weights(
    architecture, make_adapter
):
    modules = stack_folders(two_adapters(architecture, make_adapter))
    population = Population(modules, COEFFICIENTS)
    population.select([1, 3])
    name = next(iter(population.modules))
    by_row = population.weights_of_rows(name, rows=2, dims=3)  # (2, 1, R)
    flat = population.weights_of_rows(name, rows=8, dims=2)  # (8, R)
    assert torch.equal(by_row.expand(2, 4, -1).flatten(0, 1), flat)


def test_the_output_layer_may_see_other_rows_than_the_batch(make_adapter):
    population = Population(stack_folders(two_adapters("qwen2", make_adapter)), COEFFICIENTS)
    population.select([1, 3], output_rows=torch.tensor([1, 1, 0]))
    found = population.weights_of_rows("lm_head", rows=3, dims=2, output=True)
    assert torch.equal(found, population.weights["lm_head"][[3, 3, 1]])


def test_rows_of_one_candidate_share_its_weights(llama_modules):
    population = Population(llama_modules, COEFFICIENTS)
    population.select([2, 2])
    name = next(iter(population.modules))
    found = population.weights_of_rows(name, rows=2, dims=3)
    assert torch.equal(found, population.weights[name][2])


def test_experts_that_no_candidate_uses_cost_nothing(llama_modules):
    population = Population(llama_modules, torch.tensor([[0.0, 0.5], [0.0, -1.0]]))
    for name, module in population.modules.items():
        assert (module.coefficient == 1).all()
        assert len(module.a) < len(llama_modules[name].a)


def test_the_base_gets_no_hooks(llama_modules):
    model = build_model()
    with merged(model, llama_modules, torch.zeros(2)):
        assert not any(module._forward_hooks for module in model.modules())
