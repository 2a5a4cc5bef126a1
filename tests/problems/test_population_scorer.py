"""Scores of populations, unmerged and merged."""

from dataclasses import replace

import pytest
import torch
from builders import build_model

from evox_evogm.problems import Example, Task
from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.adapters.read_adapter import read_expert
from evox_evogm.problems.inference.language_model import MAX_MEMORY, LanguageModel
from evox_evogm.problems.population_scorer import PopulationScorer
from evox_evogm.problems.tasks.metrics import score_task

ADD = Task(
    "add", "1", "gold_log_probability", (Example("0", "1+1=", "2"), Example("1", "2+5=", "7"))
)
CHOICES = (("A", "yes"), ("B", "no"))
PICK = Task(
    "pick",
    "1",
    "choice_likelihood",
    tuple(Example(str(i), f"pick {i}", "A", CHOICES) for i in range(5)),
)
TASKS = [ADD, PICK]
POP = torch.tensor([[0.3, -0.9], [1.0, 0.0], [-2.0, 0.5]])


@pytest.fixture
def experts(make_adapter):
    folders = [make_adapter("first", seed=1), make_adapter("second", seed=2, r=2)]
    return [read_expert(folder) for folder in folders]


@pytest.fixture
def make_scorer(tokenizer, experts):
    def make(modes, max_memory=2**30):
        model = LanguageModel(build_model(), tokenizer)
        return PopulationScorer(model, experts, modes=modes, max_memory=max_memory)

    return make


MODES = [
    {"add": "unmerged", "pick": "unmerged"},
    {"add": "merged", "pick": "merged"},
    {"add": "merged", "pick": "unmerged"},
]


@pytest.mark.parametrize("modes", MODES)
def test_scores_and_margins_are_those_of_one_merge_after_another(make_scorer, modes):
    scorer = make_scorer(modes)
    model = scorer.language_model
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    found = scorer.score(POP, TASKS)
    assert list(found.scores) == list(found.margins) == ["add", "pick"]
    for row, coefficients in enumerate(POP):
        with merged(model.model, scorer.stacked, coefficients):
            for task in TASKS:
                margins = torch.zeros(len(task.examples))
                scores = score_task(task, model, margins)
                near = {"rtol": 1e-4, "atol": 1e-4}
                torch.testing.assert_close(found.scores[task.name][row], scores, **near)
                torch.testing.assert_close(found.margins[task.name][row], margins, **near)
    after = model.model.state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in after.items())


def test_tasks_with_decided_modes_need_no_rates(make_scorer):
    scorer = make_scorer(MODES[2])
    scorer.score(POP, TASKS)
    scorer.choose_modes(TASKS, 3)
    assert scorer.rates is None and scorer.modes == MODES[2]


def test_the_copy_of_merged_weights_counts_as_memory(make_scorer):
    unmerged, merged_in_weights = make_scorer(MODES[0]), make_scorer(MODES[1])
    unmerged.choose_modes(TASKS, 3)
    merged_in_weights.choose_modes(TASKS, 3)
    layer = merged_in_weights.language_model.model.get_submodule
    copied = sum(layer(name).weight.nbytes for name in merged_in_weights.stacked)
    assert unmerged.language_model.max_memory == MAX_MEMORY
    assert merged_in_weights.language_model.max_memory == 2**30 - copied


def test_a_copy_that_leaves_little_memory_is_told_once_and_changes_no_score(make_scorer, caplog):
    roomy, small = make_scorer(MODES[1]), make_scorer(MODES[1], max_memory=1)
    for _ in range(2):
        roomy.choose_modes(TASKS, 3)
        small.choose_modes(TASKS, 3)
    warnings = [text for text in caplog.messages if "mode merged copies" in text]
    assert len(warnings) == 1
    found, expected = small.score(POP, TASKS), roomy.score(POP, TASKS)
    for name, scores in expected.scores.items():
        torch.testing.assert_close(found.scores[name], scores, rtol=1e-4, atol=1e-4)


def test_a_scorer_of_other_experts_shares_the_rest(make_scorer, experts):
    scorer = make_scorer(MODES[2])
    expected = scorer.score(POP, TASKS)
    doubled = []
    for expert in experts:
        modules = {
            name: replace(factors, scale=2 * factors.scale)
            for name, factors in expert.modules.items()
        }
        doubled.append(replace(expert, modules=modules))
    other = scorer.with_experts(doubled)
    assert other.language_model is scorer.language_model and other.modes == scorer.modes
    found = other.score(POP / 2, TASKS)
    torch.testing.assert_close(found.scores, expected.scores)
    assert torch.equal(scorer.score(POP, TASKS).scores["add"], expected.scores["add"])
