"""Regressed experts: their plain sum is the RegMean merge, computed here from whole weights."""

import copy
from dataclasses import replace

import pytest
import torch
from builders import build_model

from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.adapters.read_adapter import read_expert
from evox_evogm.problems.adapters.regmean import beside, regress_experts
from evox_evogm.problems.box import box_of, start_of
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.tasks.requests import requests_of


def make_task(name, sign):
    examples = [Example(f"{name} {i}", f"{name}{i}{sign}", str(3 * i)) for i in range(5)]
    return Task(name, "1", "gold_log_probability", tuple(examples))


TASKS = [make_task("first", "+"), make_task("second", "?")]
OWN = {task.name: [task] for task in TASKS}


@pytest.fixture
def folders(make_adapter):
    other = {"r": 2, "lora_alpha": 5, "target_modules": ["v_proj", "up_proj", "down_proj"]}
    return [make_adapter("first", seed=1), make_adapter("second", seed=2, **other)]


@pytest.fixture
def experts(folders):
    return [read_expert(folder) for folder in folders]


@pytest.fixture
def make_problem(folders, model, tokenizer):
    def make(**settings):
        settings = {"mode": "unmerged", "tokenizer": tokenizer, **settings}
        return LoRAMergeProblem(model, folders, TASKS, **settings)

    return make


# RegMean from whole weights


def delta(expert, module):
    """s B A `(D_out, D_in)` of an expert, 0 for a module that it does not touch."""
    if module not in expert.modules:
        return 0.0
    factors = expert.modules[module]
    return factors.scale * factors.b @ factors.a


def dense_merge(model, expert):
    """A copy of the model with an expert added to its weights."""
    dense = copy.deepcopy(model)
    for module in expert.modules:
        dense.get_submodule(module).weight.data += delta(expert, module)
    return dense


@torch.no_grad()
def inputs_of_modules(model, modules, requests):
    """Per module, the inputs `(N, D)` of all tokens of questions and answers."""
    inputs = {module: [] for module in modules}
    for module in modules:

        def record(layer, arguments, module=module):
            inputs[module].append(arguments[0].flatten(0, -2))

        model.get_submodule(module).register_forward_pre_hook(record)
    for prompt, answer in requests:
        model(input_ids=torch.tensor([prompt + answer]))
    return {module: torch.cat(rows).double() for module, rows in inputs.items()}


def regression_mean(weights, inputs):
    """W of W^T = (sum_k G_k)^-1 sum_k G_k W_k^T, what is off the diagonals of the G_k times 0.9."""
    total = 0.0
    target = 0.0
    for weight, rows in zip(weights, inputs, strict=True):
        gram = rows.mT @ rows  # (D, D)
        gram = 0.9 * gram + 0.1 * gram.diagonal().diag()
        total = total + gram
        target = target + gram @ weight.mT
    ridge = 1e-6 * total.diagonal().mean() * torch.eye(len(total))
    return torch.linalg.solve(total + ridge, target).mT  # (D_out, D_in)


def test_their_sum_is_the_merge_of_whole_weights(model, experts, tokenizer):
    language_model = LanguageModel(model, tokenizer)
    modules = {module for expert in experts for module in expert.modules}
    inputs = []
    for expert, task in zip(experts, TASKS, strict=True):
        dense = dense_merge(model, expert)
        inputs.append(inputs_of_modules(dense, modules, requests_of(task, language_model)))
    regressed = regress_experts(language_model, experts, OWN)
    for module in modules:
        base = model.get_submodule(module).weight.detach()
        found = base + sum(delta(expert, module) for expert in regressed)
        weights = [(base + delta(expert, module)).double() for expert in experts]
        expected = regression_mean(weights, [rows[module] for rows in inputs])
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)
        average = torch.stack(weights).mean(0)
        assert (expected - average).abs().max() > 0.01  # ten times the tolerance


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # gpt2 keeps its weights transposed
def test_an_expert_alone_on_its_inputs_stays_as_it_is(make_adapter, tokenizer, architecture):
    model = build_model(architecture)
    settings = {}
    if architecture == "gpt2":
        settings = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    folders = [make_adapter("first", model, seed=1, **settings)]
    scores = []
    for regmean in ({"first": TASKS[:1]}, None):
        problem = LoRAMergeProblem(
            model, folders, TASKS[:1], tokenizer=tokenizer, mode="unmerged", regmean=regmean
        )
        scores.append(problem.score_tasks(torch.ones(1))["first"])
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-3, atol=1e-3)


def test_little_memory_takes_more_passes_and_gives_the_same(model, experts, tokenizer):
    at_once = regress_experts(LanguageModel(model, tokenizer, max_memory=2**30), experts, OWN)
    one_by_one = regress_experts(LanguageModel(model, tokenizer, max_memory=1), experts, OWN)
    for one, other in zip(at_once, one_by_one, strict=True):
        assert one.modules.keys() == other.modules.keys()
        for name in one.modules:
            assert torch.equal(one.modules[name].a, other.modules[name].a)


def test_embeddings_share_every_token_by_how_often_each_expert_reads_it(
    make_adapter, model, tokenizer
):
    settings = {"target_modules": ["embed_tokens"]}
    folders = [make_adapter(name, seed=seed, **settings) for seed, name in enumerate(OWN)]
    experts = [read_expert(folder) for folder in folders]
    language_model = LanguageModel(model, tokenizer)
    counts = torch.zeros(2, 257)
    for row, task in zip(counts, TASKS, strict=True):
        for prompt, answer in requests_of(task, language_model):
            for token in prompt + answer:
                row[token] += 1
    total = counts.sum(0)
    shares = torch.where(total > 0, counts / total.clamp_min(1), 0.5)
    regressed = regress_experts(language_model, experts, OWN)
    for found, given, share in zip(regressed, experts, shares, strict=True):
        (module,) = given.modules
        expected = given.modules[module].a * share
        torch.testing.assert_close(found.modules[module].a, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "regmean, words",
    [
        ({"first": TASKS[:1]}, "expert 'second' was made for, found none"),
        ({**OWN, "third": TASKS}, "expected names of experts .first, second., found 'third'"),
        ([TASKS[:1], TASKS[1:]], "or a mapping of experts to their tasks, found list"),
        (True, "or a mapping of experts to their tasks, found bool"),
        ({**OWN, "second": TASKS[1]}, "expected for expert 'second' a list of tasks, found Task"),
        ({**OWN, "second": "second"}, "expected for expert 'second' a list of tasks, found str"),
        (
            {**OWN, "first": TASKS[:1] * 2},
            "expected for expert 'first' every task once, found first, first",
        ),
    ],
)
def test_what_are_not_the_tasks_of_every_expert_is_refused(
    model, experts, tokenizer, regmean, words
):
    with pytest.raises(ValueError, match=words):
        regress_experts(LanguageModel(model, tokenizer), experts, regmean)


def test_inputs_that_are_not_finite_are_refused(model, experts, tokenizer):
    model.model.layers[0].mlp.up_proj.weight.data[0] = float("nan")
    message = "regmean: expected finite inputs of .*, found others with expert 'first'"
    with pytest.raises(ValueError, match=message):
        regress_experts(LanguageModel(model, tokenizer), experts, OWN)


# A problem of regressed experts


def test_the_box_is_around_the_regmean_merge(make_problem):
    lb, ub = make_problem(regmean=OWN).box
    average = (lb + ub) / 2 + (ub - lb) / 2 * torch.full((2,), 1 / 2)  # where EvoGM begins
    assert average.tolist() == [1.0, 1.0]
    assert (ub - lb).tolist() == [2.0, 2.0]
    lb, ub = make_problem().box
    assert lb.tolist() == [-1.0, -1.0]
    assert ub.tolist() == [1.0, 1.0]


def test_the_problem_with_experts_as_given_scores_them_as_if_there_were_no_others(make_problem):
    given = make_problem(regmean=OWN).with_experts_as_given()
    plain = make_problem()
    for row in torch.eye(2):
        found = given.score_tasks(row)
        for name, scores in plain.score_tasks(row).items():
            assert torch.equal(found[name], scores)
    assert plain.with_experts_as_given() is plain


# Experts as they are beside the regressed ones


@pytest.mark.parametrize("mode", ["unmerged", "merged"])
@pytest.mark.parametrize("groups", ["expert", "module", "channel"])
def test_experts_as_they_are_and_regressed_ones_add_up(make_problem, model, mode, groups):
    """Beside whole weights, to which plain sums of products are added."""
    problem = make_problem(regmean=OWN, keep_experts=True, mode=mode, groups=groups)
    names = [expert.name for expert in problem.experts]
    assert names == ["first", "second", "first (regressed)", "second (regressed)"]
    row = torch.tensor([0.7, -0.4, 0.9, 1.2])
    dense = copy.deepcopy(model)
    for weight, expert in zip(row, problem.experts, strict=True):
        for module in expert.modules:
            dense.get_submodule(module).weight.data += weight * delta(expert, module)
    plain = LoRAMergeProblem(
        dense, [problem.experts[0].folder], TASKS, tokenizer=problem.language_model.tokenizer
    )
    found = problem.score_tasks(problem.groups.expand(row))
    for name, scores in plain.score_tasks(torch.zeros(1)).items():
        torch.testing.assert_close(found[name], scores, rtol=1e-4, atol=1e-4)


def test_either_half_is_the_problem_without_the_other(make_problem):
    problem = make_problem(regmean=OWN, keep_experts=True)
    regressed, given = make_problem(regmean=OWN), make_problem()
    row, zeros = torch.tensor([0.6, -0.3]), torch.zeros(2)
    for half, twice in ((given, torch.cat([row, zeros])), (regressed, torch.cat([zeros, row]))):
        found = problem.score_tasks(twice)
        for name, scores in half.score_tasks(row).items():
            torch.testing.assert_close(found[name], scores, rtol=1e-4, atol=1e-4)
    again = problem.with_experts_as_given()
    assert (again.n_experts, again.n_coefficients, problem.n_given) == (2, 2, 2)
    for name, scores in given.score_tasks(row).items():
        torch.testing.assert_close(again.score_tasks(row)[name], scores)


def test_a_search_beside_the_regressed_experts_begins_at_the_regmean_merge(make_problem):
    for settings, expected in (
        ({}, [0.5, 0.5]),
        ({"regmean": OWN}, [1.0, 1.0]),
        ({"regmean": OWN, "keep_experts": True}, [0.0, 0.0, 1.0, 1.0]),
    ):
        problem = make_problem(groups="module", **settings)
        start = problem.groups.expand(torch.tensor(expected))
        assert torch.equal(problem.start, start)
        lb, ub = problem.box
        assert torch.equal(ub - lb, torch.full_like(lb, 2.0))
        torch.testing.assert_close((lb + ub) / 2 + 1 / len(expected), start)


def test_with_three_experts_it_begins_there_too():
    start = start_of(6, regressed=True, kept=3)
    assert start.tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    lb, ub = box_of(6, regressed=True, kept=3)
    torch.testing.assert_close((lb + ub) / 2 + 1 / 6, start)


def test_an_expert_with_the_name_of_a_regressed_one_is_refused(experts):
    first, second = experts
    twin = replace(second, name="first (regressed)")
    message = r"found 'first \(regressed\)' beside 'first'; give it another name"
    with pytest.raises(ValueError, match=message):
        beside([first, twin], [first, twin])


def test_experts_are_kept_beside_regressed_ones_alone(make_problem):
    with pytest.raises(ValueError, match="keep_experts: expected regmean beside it, found none"):
        make_problem(keep_experts=True)
