"""The mathematics of static merges, on matrices that can be worked out by hand."""

import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from builders import build_model

from benchmarks.static_merges.by_mergekit import MERGEKIT, by_mergekit
from benchmarks.static_merges.dense import (
    ada_merging,
    coefficients_by_layer,
    entropy,
    fisher_average,
    input_grams,
    last_logits,
    layer_of,
    merged_weights,
    regression_mean,
    squared_gradients,
    weights_in_place,
)
from benchmarks.static_merges.methods import SOURCES, static_methods
from benchmarks.static_merges.rank_mean import rank_mean, rank_weights
from evox_evogm.problems import Example, LoRAMergeProblem, Task

EXAMPLES = tuple(Example(str(i), f"{i}+{i}=", str(2 * i)) for i in range(4))
TASK = Task("add", "1", "gold_log_probability", EXAMPLES)
REQUESTS = [((5, 6, 7), (8, 9)), ((10, 11), (12,))]


@pytest.fixture
def problem(model, tokenizer, make_adapter):
    first = make_adapter("first", seed=1)
    second = make_adapter("second", seed=2, r=2, target_modules=["up_proj"])
    return LoRAMergeProblem(model, [first, second], [TASK], tokenizer=tokenizer)


def test_fisher_weighs_every_element_by_its_information():
    weights = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])]
    importance = [torch.tensor([[3.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 2.0], [1.0, 0.0]])]
    # (3 + 5) / 4, only theirs; half, neither
    assert fisher_average(weights, importance).tolist() == [[2.0, 6.0], [5.0, 6.0]]


def test_regmean_is_the_least_squares_solution_on_the_inputs_of_all_experts():
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(7, 3, generator=generator).double() for _ in range(2)]
    weights = [torch.randn(2, 3, generator=generator).double() for _ in range(2)]
    merged = regression_mean(weights, [x.mT @ x for x in inputs], 1.0)
    outputs = torch.cat([x @ w.mT for x, w in zip(inputs, weights, strict=True)])
    expected = torch.linalg.lstsq(torch.cat(inputs), outputs).solution.mT
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)


def test_regmean_without_off_diagonals_weighs_every_input_by_its_size():
    weights = [torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[5.0, 6.0]]).double()]
    grams = [
        torch.tensor([[3.0, 9.0], [9.0, 1.0]]).double(),
        torch.tensor([[1.0, 9.0], [9.0, 3.0]]).double(),
    ]
    expected = torch.tensor([[2.0, 5.0]]).double()
    merged = regression_mean(weights, grams, 0.0)
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)


def test_the_entropy_of_certain_and_of_even_predictions():
    assert float(entropy(torch.tensor([[50.0, 0.0], [0.0, 50.0]]))) == pytest.approx(0, abs=1e-6)
    assert float(entropy(torch.zeros(3, 4))) == pytest.approx(torch.log(torch.tensor(4.0)))


def test_squared_gradients_are_those_of_autograd_on_one_question_after_another(problem):
    model, name = problem.language_model.model, next(iter(problem.stacked))
    found = squared_gradients(model, [name], REQUESTS)[name]
    reference = build_model()
    total = torch.zeros_like(found)
    for prompt, answer in REQUESTS:
        tokens = torch.tensor([prompt + answer])
        labels = torch.tensor([[-100] * len(prompt) + list(answer)])
        reference.zero_grad()
        reference(input_ids=tokens, labels=labels).loss.backward()
        gradient = reference.get_submodule(name).weight.grad
        total += (len(answer) * gradient).square() / 2
    torch.testing.assert_close(found, total, rtol=1e-3, atol=1e-8)


def test_squared_gradients_leave_the_model_as_it_was(problem):
    model, name = problem.language_model.model, next(iter(problem.stacked))
    before = [weight.requires_grad for weight in model.parameters()]
    squared_gradients(model, [name], REQUESTS)
    assert [weight.requires_grad for weight in model.parameters()] == before


def test_grams_are_the_inner_products_of_what_a_layer_reads(problem):
    model = problem.language_model.model
    name = next(name for name in problem.stacked if "layers.0" in name and name.endswith("q_proj"))
    gram = input_grams(model, [name], REQUESTS)[name]
    read = []
    for prompt, answer in REQUESTS:
        tokens = torch.tensor([prompt + answer])
        read.append(model.model.layers[0].input_layernorm(model.model.embed_tokens(tokens))[0])
    read = torch.cat(read)
    torch.testing.assert_close(gram, read.mT @ read, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2])
def test_coefficients_by_layer_and_dense_weights_are_the_same_merge(problem, rows):
    model, prompts = problem.language_model.model, [(5, 6, 7), (10, 11)]
    coefficients = torch.tensor([[0.5, -1.0], [2.0, 0.3]])[:rows]
    dense = {}
    for row, own in enumerate(coefficients):
        for name, weight in merged_weights(problem, own).items():
            if layer_of(name) % rows == row:
                dense[name] = weight
    with weights_in_place(model, dense), torch.no_grad():
        logits = [model(input_ids=torch.tensor([prompt])).logits[0, -1] for prompt in prompts]
    with coefficients_by_layer(problem, coefficients), torch.no_grad():
        found = last_logits(model, prompts)
    torch.testing.assert_close(found, torch.stack(logits), rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # and the base is the base again
        tokens = torch.tensor([prompts[0]])
        plain = build_model()(input_ids=tokens).logits
        torch.testing.assert_close(model(input_ids=tokens).logits, plain)


@pytest.mark.parametrize("by_layer", [False, True])
def test_adamerging_lowers_the_entropy_of_answers(problem, by_layer):
    model, prompts = problem.language_model.model, [(5, 6, 7), (10, 11), (12, 13, 14)]
    found = ada_merging(problem, prompts, 0.3, by_layer=by_layer, steps=30, batch=3, lr=0.05)
    entropies = []
    for coefficients in (torch.full_like(found, 0.3), found):
        with coefficients_by_layer(problem, coefficients), torch.no_grad():
            entropies.append(float(entropy(last_logits(model, prompts))))
    assert entropies[1] < entropies[0]
    assert found.shape == ((2, 2) if by_layer else (1, 2))


def test_ranks_of_changes_become_weights_as_by_hand():
    # The first expert changes the parts more and more, the second the middle one least.
    changes = torch.tensor([[0.1, 0.2, 0.3], [5.0, 1.0, 9.0]])
    expected = torch.tensor([[1 / 3, 2 / 3, 1 / 2], [2 / 3, 1 / 3, 1 / 2]])
    torch.testing.assert_close(rank_weights(changes), expected)
    # Parts that an expert leaves as they are count in the order of the model.
    unchanged = torch.tensor([[0.0, 0.0, 4.0], [1.0, 2.0, 3.0]])
    torch.testing.assert_close(rank_weights(unchanged), torch.full((2, 3), 0.5))


def plain_rank_mean(folders, by_layer):
    """RankMean by loops over peft's own differences of dense weights, by the module's name."""
    from peft import PeftModel

    differences = []  # of each expert, by module
    for folder in folders:
        wrapped = PeftModel.from_pretrained(build_model(), folder).base_model.model
        own = {}
        for name, module in wrapped.named_modules():
            if hasattr(module, "get_delta_weight"):
                own[name] = module.get_delta_weight("default")
        differences.append(own)
    modules = sorted({name for own in differences for name in own})

    def part_of(name):
        found = re.search(r"layers\.(\d+)\.", name)
        if found is None:
            return None
        return int(found[1]) if by_layer else name

    ranks = []
    for own in differences:
        sizes = {part_of(name): 0.0 for name in modules if part_of(name) is not None}
        for name, difference in own.items():
            if part_of(name) is not None:
                sizes[part_of(name)] += float(difference.abs().sum())
        ordered = sorted(sizes, key=lambda part: sizes[part])
        ranks.append({part: place for place, part in enumerate(ordered, 1)})
    base, merge = build_model(), {}
    for name in modules:
        weight = base.get_submodule(name).weight.detach().clone()
        for expert, own in enumerate(differences):
            share = 1 / len(differences)
            if part_of(name) is not None:
                total = sum(by_part[part_of(name)] for by_part in ranks)
                share = ranks[expert][part_of(name)] / total
            if name in own:
                weight += share * own[name]
        merge[name] = weight
    return merge


@pytest.mark.parametrize("parts", ["layer", "module"])
def test_rank_mean_is_that_of_slow_loops_over_dense_weights(model, tokenizer, make_adapter, parts):
    settings = [
        {"target_modules": ["q_proj", "up_proj", "lm_head"]},
        {"target_modules": ["q_proj", "down_proj", "up_proj"], "r": 2, "lora_alpha": 9},
        {"target_modules": ["up_proj", "down_proj", "q_proj"], "r": 3, "use_rslora": True},
    ]
    folders = []
    for index, own in enumerate(settings):
        folders.append(make_adapter(f"expert{index}", seed=index + 1, **own))
    three = LoRAMergeProblem(model, folders, [TASK], tokenizer=tokenizer)
    found = rank_mean(three, parts)
    expected = plain_rank_mean(folders, by_layer=parts == "layer")
    assert set(found) == set(expected)
    average = merged_weights(three, torch.full((3,), 1 / 3))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5)
        is_average = torch.allclose(weight, average[name], atol=1e-4)
        assert is_average or name != "lm_head"  # outside of layers
    assert any(not torch.allclose(found[name], average[name], atol=1e-4) for name in found)


def test_every_method_says_where_it_comes_from():
    assert set(static_methods("mergekit-yaml")) == set(SOURCES)
    assert set(static_methods(None)) == set(SOURCES) - set(MERGEKIT)
    assert list(static_methods(None, ["R0"]))[0] == "expert R0"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mergekit-yaml") is None, reason="mergekit is not installed")
def test_task_arithmetic_of_mergekit_is_the_merge_of_coefficients(problem):
    suite = SimpleNamespace(problem=problem, n=2)
    settings = by_mergekit(suite, shutil.which("mergekit-yaml"), "task_arithmetic", False)
    found = next(settings).score([TASK])["add"]  # the first weight is 1 / n
    settings.close()
    expected = problem.score_tasks(torch.full((2,), 0.5))["add"].mean()
    assert found == pytest.approx(float(expected), abs=1e-5)
