"""The static merges: each gives the settings of its grid, one after another."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from benchmarks.static_merges.by_mergekit import MERGEKIT, by_mergekit
from benchmarks.static_merges.dense import (
    Weights,
    ada_merging,
    coefficients_by_layer,
    fisher_average,
    input_grams,
    mean_scores,
    merged_weights,
    regression_mean,
    squared_gradients,
    weights_in_place,
)
from benchmarks.static_merges.rank_mean import PARTS, rank_mean
from benchmarks.static_merges.settings import LoadedSuite, Scores, Setting
from benchmarks.suites.anchors import REGMEANS
from evox_evogm.problems import Task
from evox_evogm.problems.tasks.requests import requests_of

SCALES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)  # coefficients of all experts
KEPT = (0.1, 0.5, 0.9)  # off the diagonals of RegMean's grams
SOURCES = {
    "base": "the base model",
    "best expert": "a single expert, chosen on dev",
    "Model Soup": "Wortsman et al. 2022, arXiv 2203.05482",
    "task arithmetic": "Ilharco et al. 2023, arXiv 2212.04089",
    "Fisher": "Matena and Raffel 2022, arXiv 2111.09832",
    "RegMean": "Jin et al. 2023, arXiv 2212.09849",
    "RegMean on tasks": "RegMean, as a sum of experts",
    "RegMean on prompts": "RegMean on prompts without answers",
    "RegMean on weights": "RegMean without text",
    "AdaMerging task-wise": "Yang et al. 2024, arXiv 2310.02575",
    "AdaMerging layer-wise": "Yang et al. 2024, arXiv 2310.02575",
    "RankMean": "Perin et al. 2024, Findings of ACL",
    "TIES": "Yadav et al. 2023, arXiv 2306.01708",
    "DARE": "Yu et al. 2024, arXiv 2311.03099",
    "DARE-TIES": "Yu et al. 2024, arXiv 2311.03099",
    "DELLA": "Deep et al. 2024, arXiv 2406.11617",
}


def base(suite: LoadedSuite) -> Iterator[Setting]:
    yield suite.linear("", torch.zeros(suite.n))


def best_expert(suite: LoadedSuite) -> Iterator[Setting]:
    for name, row in zip(suite.experts, torch.eye(suite.n), strict=True):
        yield suite.linear(name, row)


def single_expert(suite: LoadedSuite, index: int) -> Iterator[Setting]:
    yield suite.linear("", torch.eye(suite.n)[index])


def model_soup(suite: LoadedSuite) -> Iterator[Setting]:
    yield suite.linear("", torch.full((suite.n,), 1 / suite.n))


def task_arithmetic(suite: LoadedSuite) -> Iterator[Setting]:
    for scale in SCALES:
        yield suite.linear(f"scale {scale}", torch.full((suite.n,), scale))


def measure_on_own_tasks(
    suite: LoadedSuite, experts: Sequence[Weights], measure: Callable[..., Weights]
) -> list[Weights]:
    """What a function measures on each expert, with its own dev questions and their answers."""
    language_model = suite.problem.language_model
    model = language_model.model
    measured = []
    for weights, task in zip(experts, suite.own_tasks, strict=True):
        with weights_in_place(model, weights):
            requests = requests_of(task, language_model)
            measured.append(measure(model, list(weights), requests))
    return measured


def fisher(suite: LoadedSuite) -> Iterator[Setting]:
    """With each expert's Fisher information on its own dev questions and their answers."""
    experts = [merged_weights(suite.problem, row) for row in torch.eye(suite.n)]
    importance = measure_on_own_tasks(suite, experts, squared_gradients)
    merge = {}
    for name in experts[0]:
        weights = [expert[name] for expert in experts]
        merge[name] = fisher_average(weights, [by_name[name] for by_name in importance])
    yield suite.dense("", merge)


def regmean(suite: LoadedSuite) -> Iterator[Setting]:
    """With each expert's inputs on its own dev questions and their answers."""
    experts = [merged_weights(suite.problem, row) for row in torch.eye(suite.n)]
    grams = measure_on_own_tasks(suite, experts, input_grams)
    for keep in KEPT:
        merge = {}
        for name in experts[0]:
            weights = [expert[name].float() for expert in experts]
            merge[name] = regression_mean(weights, [by_name[name] for by_name in grams], keep)
        yield suite.dense(f"off-diagonals x {keep}", merge)


def regmean_anchor(suite: LoadedSuite, kind: str) -> Iterator[Setting]:
    """What a search around RegMean starts from: the sum of experts that were regressed."""
    yield suite.linear("", torch.ones(suite.n), kind)


def rank_mean_settings(suite: LoadedSuite) -> Iterator[Setting]:
    """By decoder layer as published, and its finer form."""
    for parts in PARTS:
        yield suite.dense(f"by {parts}", rank_mean(suite.problem, parts))


def adamerging(suite: LoadedSuite, *, by_layer: bool) -> Iterator[Setting]:
    """With all dev questions, without answers.

    500 steps of 16 questions with the learning rate 1e-3, as published.
    """
    model = suite.problem.language_model
    prompts = []
    for task in suite.dev:
        for example in task.examples:
            prompts.append(model.prompt_tokens(example.prompt, chat=task.chat))
    for start in (1 / suite.n, 0.3):
        coefficients = ada_merging(
            suite.problem, prompts, start, by_layer=by_layer, steps=500, batch=16, lr=1e-3
        )

        def score(tasks: list[Task], coefficients: torch.Tensor = coefficients) -> Scores:
            with coefficients_by_layer(suite.problem, coefficients):
                return mean_scores(model, tasks)

        yield Setting(f"start {start:.2g}", score)


def static_methods(
    mergekit: str | None, experts: Sequence[str] = ()
) -> dict[str, Callable[[LoadedSuite], Iterator[Setting]]]:
    """The merges of every method, by name.

    :param mergekit: the command mergekit-yaml; without it, its methods are left out.
    :param experts: names of experts, each of which is then a method of its own.
    """
    methods: dict[str, Callable] = {}
    for index, name in enumerate(experts):
        methods[f"expert {name}"] = partial(single_expert, index=index)
    methods |= {
        "base": base,
        "best expert": best_expert,
        "Model Soup": model_soup,
        "task arithmetic": task_arithmetic,
        "Fisher": fisher,
        "RegMean": regmean,
        **{f"RegMean on {kind}": partial(regmean_anchor, kind=kind) for kind in REGMEANS},
        "RankMean": rank_mean_settings,
        "AdaMerging task-wise": partial(adamerging, by_layer=False),
        "AdaMerging layer-wise": partial(adamerging, by_layer=True),
    }
    if mergekit is not None:
        for name, (method, normalize) in MERGEKIT.items():
            methods[name] = partial(
                by_mergekit, command=mergekit, method=method, normalize=normalize
            )
    return methods
