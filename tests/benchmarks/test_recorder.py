"""What counts as an evaluation, and what is kept of it."""

import pytest
import torch
from evox.core import Problem
from evox.workflows import StdWorkflow

from benchmarks.compare.recorder import BudgetUsed, Recorder, best_rows
from benchmarks.compare.search import run_until_used
from evox_evogm import GradientSearch, Outcomes
from evox_evogm.problems import Racing


class FirstCoordinate(Problem):
    """Scores the first coordinate, which is also the fraction of ten outcomes that are
    evaluated."""

    objectives = "outcomes"

    def __init__(self, racing=None):
        super().__init__()
        self.racing = racing
        self.box = (torch.tensor([-1.0]), torch.tensor([1.0]))

    def evaluate(self, pop):
        outcomes = torch.ones(len(pop), 10)
        if self.racing:
            evaluated = torch.arange(10) < (10 * pop[:, :1]).round()
            outcomes = outcomes.masked_fill(~evaluated, torch.nan)
        return torch.cat([pop[:, :1], outcomes], 1)


def points(*values):
    return torch.tensor(values)[:, None]


def test_the_last_population_is_cut_where_the_budget_is_used():
    recorder = Recorder(FirstCoordinate(), 5, outcomes=False)
    assert recorder.evaluate(points(0.1, 0.2, 0.3)).tolist() == pytest.approx([0.1, 0.2, 0.3])
    with pytest.raises(BudgetUsed):
        recorder.evaluate(points(0.9, 0.5, 0.7))
    assert [row.budget_used for row in recorder.rows] == [1, 2, 3, 4, 5]
    assert [row.score for row in recorder.rows] == pytest.approx([0.1, 0.2, 0.3, 0.9, 0.5])
    torch.testing.assert_close(best_rows(recorder.rows, 2), points(0.9, 0.5))


def test_of_equal_scores_the_earlier_is_better():
    recorder = Recorder(FirstCoordinate(), 5, outcomes=False)
    recorder.evaluate(points(0.1, 0.3, 0.3))
    recorder.rows[1] = recorder.rows[1]._replace(point=[7.0])
    assert best_rows(recorder.rows, 1).tolist() == [[7.0]]


def test_with_racing_the_fraction_of_examples_that_was_evaluated_is_used():
    recorder = Recorder(FirstCoordinate(Racing()), 2, outcomes=True)
    recorder.evaluate(points(1.0, 0.3))
    with pytest.raises(BudgetUsed):
        recorder.evaluate(points(0.4, 0.2, 0.5))
    used = [round(row.budget_used, 3) for row in recorder.rows]
    assert used == [1.0, 1.3, 1.7, 1.9]


def test_a_failed_merge_counts_as_a_full_evaluation():
    recorder = Recorder(FirstCoordinate(Racing()), 3, outcomes=True)
    recorder.evaluate(points(0.0, 0.5))
    assert [row.budget_used for row in recorder.rows] == pytest.approx([1.0, 1.5])


def test_a_basis_is_applied_before_points_are_evaluated_and_kept():
    recorder = Recorder(FirstCoordinate(), 5, outcomes=True)
    recorder.basis = torch.tensor([[0.5]])
    assert recorder.evaluate(points(0.8)).shape == (1, 11)
    assert recorder.rows[0].point == pytest.approx([0.4])


class OnMinibatches(Problem):
    """Counts the points of a search along gradients whose evaluations take a third."""

    objectives, minibatches, racing = "gradients", 3, None
    box = torch.tensor([-1.0]), torch.tensor([1.0])

    def evaluate(self, pop):
        return torch.cat([pop, torch.full_like(pop, torch.nan), pop], 1)


@pytest.mark.parametrize("minibatches", [3, 10, 13])
def test_parts_of_evaluations_add_up_to_the_budget_whatever_the_rounding(minibatches):
    problem = OnMinibatches()
    problem.minibatches = minibatches
    recorder = Recorder(problem, 15, outcomes=True)
    for _ in range(5 * minibatches):
        assert len(recorder.evaluate(points(0.5))) == 1
    with pytest.raises(BudgetUsed):
        recorder.evaluate(points(0.5))


def test_minibatches_are_parts_of_evaluations_and_use_all_of_the_budget():
    recorder = Recorder(OnMinibatches(), 4, outcomes=True)
    search = GradientSearch(
        torch.zeros(1), outcomes=Outcomes(torch.ones(1), torch.tensor([False])), perturbation=0.0
    )
    workflow = StdWorkflow(search, recorder, opt_direction="max")
    run_until_used(workflow, recorder)
    assert [row.budget_used for row in recorder.rows] == [1, 2, 3, 4]
    workflow.algorithm.recommend()
    assert len(recorder.rows) == 4
