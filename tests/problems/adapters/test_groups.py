"""Coefficients by expert and group of modules."""

import json

import pytest
import torch
from builders import build_model, mixed_adapters
from evox.workflows import EvalMonitor, StdWorkflow
from other_bases import logits_of, peft_logits
from safetensors.torch import load_file

from evox_evogm import EvoGM
from evox_evogm.baselines import CMAES, ModelSwarms, PSOMerging, RandomSearch
from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.adapters.groups import group_modules
from evox_evogm.problems.failures import AllFailed

NAMES = [
    "model.embed_tokens",
    "model.layers.0.mlp.up_proj",
    "model.layers.9.mlp.up_proj",
    "model.layers.10.self_attn.q_proj",
    "model.vision.layers.0.mlp.up_proj",
]
ADD = Task("add", "1", "gold_log_probability", (Example("0", "1+1=", "2"),))


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("expert", {"all": NAMES}),
        (
            "layer",
            {
                "rest": NAMES[:1],
                "model.layers.0": NAMES[1:2],
                "model.layers.9": NAMES[2:3],
                "model.layers.10": NAMES[3:4],
                "model.vision.layers.0": NAMES[4:],
            },
        ),
        (
            "block:10",
            {
                "rest": NAMES[:1],
                "model.layers.0-9": NAMES[1:3],
                "model.layers.10-19": NAMES[3:4],
                "model.vision.layers.0-9": NAMES[4:],
            },
        ),
        ("module", {name: [name] for name in NAMES}),
        ("channel", {f"{name}, channel 0": [name] for name in NAMES}),
        (
            {"first": r"layers\.0\.", "attention": "self_attn"},
            {"rest": [NAMES[0], NAMES[2]], "first": [NAMES[1], NAMES[4]], "attention": [NAMES[3]]},
        ),
        (lambda name: name[-4:], {"kens": NAMES[:1], "proj": NAMES[1:]}),
    ],
)
def test_a_module_belongs_to_one_group(groups, expected):
    found = group_modules(dict.fromkeys(reversed(NAMES), 1), groups)
    members = {name: [] for name in found.names}
    for module in NAMES:
        members[found.names[found.of_module[module]]].append(module)
    assert list(found.names) == list(expected) and members == expected


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("rows", 'groups: expected "expert", "layer", "block:k" .* found \'rows\''),
        ("block:0", "found 'block:0'"),
        (3, "found 3"),
        ({"up": "("}, r"groups: expected a regular expression for 'up', found '\('"),
        ({"up": None}, "found None"),
        ({"up": "up_proj", "also": "up"}, "expected modules of experts that 'up' finds for 'also'"),
        ({"rest": "up"}, "groups: expected other names than 'rest'"),
        (lambda name: 1, "groups: expected a name for .*, found 1"),
    ],
)
def test_what_is_no_grouping_is_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        group_modules(dict.fromkeys(NAMES, 1), groups)


def test_every_channel_of_a_module_is_a_group():
    groups = group_modules({"model.layers.1.v_proj": 1, "model.layers.0.q_proj": 3}, "channel")
    assert groups.names == (
        "model.layers.0.q_proj, channel 0",
        "model.layers.0.q_proj, channel 1",
        "model.layers.0.q_proj, channel 2",
        "model.layers.1.v_proj, channel 0",
    )
    assert groups.of_channels("model.layers.0.q_proj", 2) == (0, 1)
    assert groups.of_channels("model.layers.1.v_proj", 1) == (3,)


def test_coefficients_stand_expert_after_expert():
    groups = group_modules(dict.fromkeys(NAMES, 1), "layer")
    expanded = groups.expand(torch.tensor([[0.5, 2.0]]))
    assert expanded.tolist() == [[0.5] * 5 + [2.0] * 5]
    assert groups.by_expert(expanded).tolist() == [[[0.5] * 5, [2.0] * 5]]


@pytest.fixture(params=["module", "channel"])
def problem(request, model, tokenizer, make_adapter):
    folders = mixed_adapters(make_adapter)
    settings = {"tokenizer": tokenizer, "groups": request.param, "mode": "unmerged"}
    return LoRAMergeProblem(model, folders, [ADD], **settings)


@pytest.fixture
def coefficients(problem):
    torch.manual_seed(5)
    found = torch.randn(problem.n_coefficients)
    found[::3] = 0.0
    return found


def expected_logits(problem, coefficients):
    """Those of a model to which every expert's products are added, group by group, by hand."""
    model = build_model()
    table = problem.groups.by_expert(coefficients)
    for expert, row in zip(problem.experts, table, strict=True):
        tensors = load_file(expert.folder / "adapter_model.safetensors")
        for group, coefficient in zip(problem.groups.names, row, strict=True):
            name, _, channel = group.partition(", channel ")
            prefix = f"base_model.model.{name}.lora_"
            if f"{prefix}A.weight" in tensors:
                a, b = tensors[f"{prefix}A.weight"], tensors[f"{prefix}B.weight"]
            elif f"{prefix}embedding_A" in tensors:
                a, b = tensors[f"{prefix}embedding_A"], tensors[f"{prefix}embedding_B"]
            else:
                continue
            if channel:
                number = int(channel)
                a, b = a[number : number + 1], b[:, number : number + 1]
            product = b @ a
            if f"{prefix}embedding_A" in tensors:
                product = product.T
            weight = model.get_submodule(name).weight
            weight.data += coefficient * expert.modules[name].scale * product
    return logits_of(model)


def test_both_modes_and_plain_peft_give_the_merge(problem, coefficients, tmp_path):
    expected = expected_logits(problem, coefficients)
    model, scorer = problem.language_model.model, problem.scorer
    from evox_evogm.problems.adapters.merging import merged
    from evox_evogm.problems.adapters.weight_merger import merged_in_place

    with merged(model, problem.stacked, coefficients):
        torch.testing.assert_close(logits_of(model), expected, rtol=1e-4, atol=1e-4)
    with merged_in_place(scorer.weight_merger, coefficients[None]) as candidates:
        for _ in candidates:
            torch.testing.assert_close(logits_of(model), expected, rtol=1e-4, atol=1e-4)
    assert problem.export(coefficients, tmp_path / "merge") < 1e-5
    found = peft_logits(build_model(), tmp_path / "merge")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_channels_whose_coefficient_is_0_are_not_exported(problem, coefficients, tmp_path):
    first = problem.groups.of_module["model.layers.0.self_attn.q_proj"]
    coefficients = torch.zeros_like(coefficients)
    problem.groups.by_expert(coefficients)[1, first] = 1.0
    problem.export(coefficients, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.0.self_attn.q_proj"]
    assert config["r"] == (1 if problem.groups.by_channel else 5)


def test_the_same_coefficient_in_all_groups_is_the_merge_without_groups(
    problem, model, tokenizer, make_adapter
):
    folders = [expert.folder for expert in problem.experts]
    plain = LoRAMergeProblem(model, folders, [ADD], tokenizer=tokenizer, mode="unmerged")
    pop = torch.tensor([[0.3, -0.2, 0.7, 0.1]])
    assert torch.equal(problem.evaluate(problem.groups.expand(pop)), plain.evaluate(pop))
    assert problem.box[0].shape == (problem.n_coefficients,) != plain.box[0].shape


def test_what_an_expert_has_in_a_group_is_what_its_file_holds(problem):
    used = problem.groups.by_expert(problem.scorer.used_coefficients)
    for expert, row in zip(problem.experts, used.tolist(), strict=True):
        tensors = load_file(expert.folder / "adapter_model.safetensors")
        for group, found in zip(problem.groups.names, row, strict=True):
            name, _, channel = group.partition(", channel ")
            ranks = [0]  # of A, whose rows are channels
            for end in ("lora_A.weight", "lora_embedding_A"):
                tensor = tensors.get(f"base_model.model.{name}.{end}")
                if tensor is not None:
                    ranks.append(len(tensor))
            assert found == (int(channel or 0) < max(ranks)), (expert.name, group)


def test_a_coefficient_that_is_not_used_makes_no_other_merge(problem):
    pop = torch.zeros(2, problem.n_coefficients)
    pop[1, ~problem.scorer.used_coefficients] = 1.0
    assert pop[1].any()
    assert problem.evaluate(pop).unique().numel() == 1
    assert len(problem.cache.unseen(pop)) == 0


@pytest.mark.parametrize("search", [EvoGM, RandomSearch, ModelSwarms, PSOMerging, CMAES])
def test_every_search_runs_unchanged_over_groups(problem, search):
    torch.manual_seed(0)
    lb, ub = problem.box
    make = (lambda: CMAES((lb + ub) / 2, 0.2, 4)) if search is CMAES else lambda: search(4, lb, ub)
    monitor = EvalMonitor()
    workflow = StdWorkflow(make(), problem, monitor, opt_direction="max")
    workflow.init_step()
    workflow.step()
    best = monitor.get_best_solution()
    assert best.shape == (problem.n_coefficients,) and problem.n_coefficients > problem.n_experts
    assert float(problem.evaluate(best[None])[0]) == pytest.approx(
        float(monitor.get_best_fitness()), abs=1e-5
    )


def test_a_point_of_another_width_is_refused(problem):
    with pytest.raises(ValueError, match="one column for each of 4 experts and .* groups"):
        problem.evaluate(torch.zeros(1, 4))


def test_gradients_follow_margins_and_count_as_three_evaluations(model, tokenizer, make_adapter):
    folders = mixed_adapters(make_adapter)
    problem = LoRAMergeProblem(
        model, folders, [ADD], tokenizer=tokenizer, groups="layer", objectives="gradients"
    )
    pop = problem.groups.expand(torch.tensor([[0.3, -0.2, 0.7, 0.1]]))
    fitness = problem.evaluate(pop)
    assert fitness.shape == (1, 1 + 1 + problem.n_coefficients) and problem.budget_used == 3
    step = 1e-2 * torch.eye(problem.n_coefficients)
    above, below = problem.evaluate(pop + step)[:, 0], problem.evaluate(pop - step)[:, 0]
    torch.testing.assert_close(fitness[0, 2:], (above - below) / 2e-2, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("groups", ["layer", "channel"])
def test_the_smoothed_gradient_is_that_of_central_differences(tokenizer, make_adapter, groups):
    """Two tasks of unequal size weigh the same; margins that count by sign are smoothed."""
    pick = Task(
        "pick",
        "1",
        "choice_likelihood",
        tuple(Example(str(i), f"pick {i}", "A", (("A", "yes"), ("B", "no"))) for i in range(3)),
    )
    folders = mixed_adapters(make_adapter)
    model = build_model().double()
    settings = {"tokenizer": tokenizer, "groups": groups, "objectives": "gradients"}
    both = LoRAMergeProblem(model, folders, [ADD, pick], **settings)
    point = torch.linspace(-0.4, 0.6, both.n_coefficients, dtype=torch.float64)[None]

    def smoothed(at):
        margins = both.evaluate(at)[:, 1:5]
        return (margins[:, 0] + margins[:, 1:].sigmoid().mean(1)) / 2

    found = both.evaluate(point)[0, 5:]
    step = 1e-3 * torch.eye(both.n_coefficients, dtype=torch.float64)
    expected = (smoothed(point + step) - smoothed(point - step)) / 2e-3
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.002)


def test_gradients_are_those_of_the_unmerged_mode(model, tokenizer, make_adapter):
    folders = mixed_adapters(make_adapter)
    settings = {"tokenizer": tokenizer, "objectives": "gradients"}
    with pytest.raises(ValueError, match='mode: expected "auto" or "unmerged" with gradients'):
        LoRAMergeProblem(model, folders, [ADD], mode="merged", **settings)


def test_a_merge_that_fails_alone_ends_a_search_only_before_the_first_score(
    model, tokenizer, make_adapter
):
    folders = mixed_adapters(make_adapter)
    broken, sound = torch.full((1, 4), torch.nan), torch.zeros(1, 4)
    for objectives in ("mean", "gradients"):
        settings = {"tokenizer": tokenizer, "objectives": objectives}
        problem = LoRAMergeProblem(model, folders, [ADD], **settings)
        with pytest.raises(AllFailed):
            problem.evaluate(broken)
        problem.evaluate(sound)
        fitness = problem.evaluate(broken)
        assert fitness.flatten()[0] == -torch.inf
        assert problem.budget_used in (3, 9)
