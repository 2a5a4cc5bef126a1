"""Regressed experts: their plain sum is the RegMean merge, which `benchmarks/dense_merges.py` computes from whole weights."""

import json

import pytest
import torch
from builders import build_model, change_settings, history, merge
from dense_merges import input_grams, merged_weights, regression_mean, weights_in_place

from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.tasks.metrics import requests_of
from evox_evogm.resume.resumable_search import ResumableSearch

TASKS = [
    Task(
        name,
        "1",
        "gold_log_probability",
        tuple(Example(f"{name} {i}", f"{name}{i}{sign}", str(3 * i)) for i in range(5)),
    )
    for name, sign in (("first", "+"), ("second", "?"))
]
OWN = {task.name: [task] for task in TASKS}


@pytest.fixture
def folders(make_adapter):
    other = {"r": 2, "lora_alpha": 5, "target_modules": ["v_proj", "up_proj", "down_proj"]}
    return [make_adapter("first", seed=1), make_adapter("second", seed=2, **other)]


def make_problem(folders, tokenizer, model=None, **settings):
    model = build_model() if model is None else model
    settings = {"mode": "unmerged"} | settings
    return LoRAMergeProblem(model, folders, TASKS, tokenizer=tokenizer, **settings)


def test_their_sum_is_the_merge_of_whole_weights(folders, tokenizer):
    given = make_problem(folders, tokenizer)
    model, weights = (
        given.language_model.model,
        [merged_weights(given, row) for row in torch.eye(2)],
    )
    grams = []
    for mine, task in zip(weights, TASKS, strict=True):
        with weights_in_place(model, mine):
            grams.append(input_grams(model, list(mine), requests_of(task, given.language_model)))
    ours = merged_weights(make_problem(folders, tokenizer, regmean=OWN), torch.ones(2))
    for name in weights[0]:
        dense = regression_mean(
            [w[name].double() for w in weights], [g[name].double() for g in grams], 0.9
        )
        torch.testing.assert_close(ours[name].double(), dense, rtol=1e-3, atol=1e-3)
        average = torch.stack([w[name] for w in weights]).mean(0).double()
        assert (dense - average).abs().max() > 0.01  # ten times the tolerance


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # gpt2 keeps its weights transposed
def test_an_expert_alone_on_its_inputs_stays_as_it_is(make_adapter, tokenizer, architecture):
    other = {"target_modules": ["c_attn"], "fan_in_fan_out": True} if architecture == "gpt2" else {}
    folders = [make_adapter("first", build_model(architecture), seed=1, **other)]
    problem, given = (
        make_problem(folders, tokenizer, build_model(architecture), regmean=regmean)
        for regmean in ({"first": TASKS[:1]}, None)
    )
    ones = torch.ones(1)
    regressed, before = (
        [p.score_tasks(ones)[task.name] for task in TASKS[:1]] for p in (problem, given)
    )
    torch.testing.assert_close(regressed, before, rtol=1e-3, atol=1e-3)


def test_little_memory_takes_more_passes_and_gives_the_same(folders, tokenizer):
    at_once, one_by_one = (
        make_problem(folders, tokenizer, regmean=OWN, max_memory=memory, candidates_at_once=1)
        for memory in (2**30, 1)
    )
    for one, other in zip(at_once.experts, one_by_one.experts, strict=True):
        assert one.modules.keys() == other.modules.keys()
        for name in one.modules:
            torch.testing.assert_close(one.modules[name].a, other.modules[name].a, rtol=0, atol=0)


def test_embeddings_share_every_token_by_how_often_each_expert_reads_it(make_adapter, tokenizer):
    folders = [
        make_adapter(name, seed=seed, target_modules=["embed_tokens"])
        for seed, name in enumerate(OWN)
    ]
    problem, given = make_problem(folders, tokenizer, regmean=OWN), make_problem(folders, tokenizer)
    (module,) = problem.experts[0].modules
    counts = []
    for task in TASKS:
        tokens = [
            token
            for pair in requests_of(task, given.language_model)
            for part in pair
            for token in part
        ]
        counts.append(torch.tensor(tokens).bincount(minlength=257).double())
    for mine, before, own in zip(problem.experts, given.experts, counts, strict=True):
        share = torch.where(sum(counts) > 0, own / sum(counts).clamp_min(1), 0.5)
        expected = (before.modules[module].a * share).float()
        torch.testing.assert_close(mine.modules[module].a, expected, rtol=1e-4, atol=1e-4)


def test_the_box_is_around_the_regmean_merge(folders, tokenizer):
    lb, ub = make_problem(folders, tokenizer, regmean=OWN).box
    average = (lb + ub) / 2 + (ub - lb) / 2 * torch.full((2,), 1 / 2)  # where EvoGM begins
    assert average.tolist() == [1.0, 1.0] and (ub - lb).tolist() == [2.0, 2.0]
    assert [bound.tolist() for bound in make_problem(folders, tokenizer).box] == [
        [-1.0, -1.0],
        [1.0, 1.0],
    ]


def test_the_problem_with_experts_as_given_scores_them_as_if_there_were_no_others(
    folders, tokenizer
):
    given = make_problem(folders, tokenizer, regmean=OWN).with_experts_as_given()
    plain = make_problem(folders, tokenizer)
    for row in torch.eye(2):
        ours, expected = given.score_tasks(row), plain.score_tasks(row)
        assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert plain.with_experts_as_given() is plain


@pytest.mark.parametrize(
    "regmean, words",
    [
        ({"first": TASKS[:1]}, "expert 'second' was made for, found none"),
        ({**OWN, "third": TASKS}, "expected names of experts .first, second., found 'third'"),
        ([TASKS[:1], TASKS[1:]], "expected a mapping of experts to their tasks, found list"),
        ({**OWN, "second": TASKS[1]}, "expected for expert 'second' a list of tasks, found Task"),
        ({**OWN, "second": "second"}, "expected for expert 'second' a list of tasks, found str"),
        (
            {**OWN, "first": TASKS[:1] * 2},
            "expected for expert 'first' every task once, found first, first",
        ),
    ],
)
def test_what_are_not_the_tasks_of_every_expert_is_refused(folders, tokenizer, regmean, words):
    with pytest.raises(ValueError, match=words):
        make_problem(folders, tokenizer, regmean=regmean)


def test_inputs_that_are_not_finite_are_refused(folders, tokenizer):
    model = build_model()
    model.model.layers[0].mlp.up_proj.weight.data[0] = float("nan")
    with pytest.raises(
        ValueError, match="regmean: expected finite inputs of .*, found others with expert 'first'"
    ):
        make_problem(folders, tokenizer, model, regmean=OWN)


def test_a_run_around_the_regmean_merge_shows_it_beside_the_experts_as_they_are(project, capsys):
    change_settings(
        project, regmean={"first": "sums", "second": ["quiz", "sums"]}, search={"epochs": 2}
    )
    assert merge(project) == 0
    out = project / "out"
    assert history(out)[0]["coefficients"] == [1.0, 1.0]
    result = json.loads((out / "result.json").read_text())
    assert [row["name"] for row in result["scores"]] == [
        "base",
        "first",
        "second",
        "average",
        "RegMean",
        "EvoGM",
    ]
    assert result["adapter"]["largest_relative_difference"] < 1e-6
    rows = {row["name"]: row for row in result["scores"]}
    assert rows["RegMean"]["dev"] == history(out)[0]["tasks"]
    assert "1 for each is the RegMean merge" in (out / "report.md").read_text()
    shown = capsys.readouterr().out
    assert (
        "regressing the experts on their tasks" in shown
        and "coefficients of the regressed experts: first" in shown
    )
    change_settings(project, regmean=...)
    assert merge(project, out="plain") == 0
    plain = {
        row["name"]: row
        for row in json.loads((project / "plain" / "result.json").read_text())["scores"]
    }
    for name in ("base", "first", "second", "average"):
        assert rows[name]["test"] == pytest.approx(plain[name]["test"])


def test_such_a_run_goes_on_as_if_it_had_not_stopped(project, monkeypatch):
    change_settings(project, regmean={"first": "sums", "second": "quiz"}, search={"epochs": 2})
    assert merge(project, out="whole") == 0
    run = ResumableSearch.run
    monkeypatch.setattr(
        ResumableSearch,
        "run",
        lambda self, steps: run(self, 2) or (_ for _ in ()).throw(KeyboardInterrupt),
    )
    assert merge(project, out="cut") == 130
    monkeypatch.setattr(ResumableSearch, "run", run)
    assert len(history(project / "cut")) == 8 and merge(project, out="cut") == 0
    assert history(project / "cut") == history(project / "whole")
    results = [json.loads((project / out / "result.json").read_text()) for out in ("cut", "whole")]
    assert (
        results[0]["coefficients"] == results[1]["coefficients"]
        and results[0]["scores"] == results[1]["scores"]
    )
    change_settings(project, regmean={"first": "quiz", "second": "sums"})
    assert merge(project, out="cut") == 2


@pytest.mark.parametrize(
    "regmean, words",
    [
        (True, "expected for expert 'first' some of the tasks sums, quiz, found"),
        ("sums", "expected true, or a table"),
        ({"first": "sums"}, "expert 'second' was made for, found none"),
        ({"first": [["sums"]], "second": "quiz"}, "expected for expert 'first' some of the tasks"),
        ({"first": "sums", "second": []}, "expected for expert 'second' some of the tasks"),
    ],
)
def test_settings_that_name_no_task_for_an_expert_end_in_a_sentence(
    project, capsys, regmean, words
):
    change_settings(project, regmean=regmean)
    assert merge(project) == 2
    assert words in capsys.readouterr().err
