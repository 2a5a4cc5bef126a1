"""CMA-ES in a workflow is the package `cmaes` driven by hand."""

import numpy as np
import pytest
import torch
from cmaes import CMA
from contract import BAD_BOXES
from evox.problems.numerical import Ellipsoid
from evox.workflows import EvalMonitor, StdWorkflow

from evox_evogm.baselines import CMAES


def test_four_steps_equal_the_library_asked_and_told_by_hand():
    mean = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    torch.manual_seed(3)
    monitor = EvalMonitor(full_sol_history=True)
    workflow = StdWorkflow(CMAES(mean, 0.3, 6), Ellipsoid(), monitor)
    for _ in range(4):
        workflow.step()
    torch.manual_seed(3)
    reference = CMA(mean.numpy(), 0.3, population_size=6, seed=int(torch.randint(2**31, ())))
    for points in monitor.get_solution_history():
        expected = np.stack([reference.ask() for _ in range(6)])
        np.testing.assert_array_equal(points.numpy(), expected)
        fitness = Ellipsoid().evaluate(torch.tensor(expected)).tolist()
        reference.tell(list(zip(expected, fitness, strict=True)))
    record = workflow.algorithm.record_step()
    np.testing.assert_array_equal(record["mean"].numpy(), reference.mean)


class Refusing(Ellipsoid):
    """Cannot evaluate points with a negative first coordinate."""

    def evaluate(self, pop):
        return torch.where(pop[:, 0] < 0, torch.nan, super().evaluate(pop))


def test_failed_evaluations_count_as_worst():
    torch.manual_seed(0)
    monitor = EvalMonitor()
    workflow = StdWorkflow(CMAES(torch.tensor([0.1, 1.0]), 0.5, 8), Refusing(), monitor)
    for _ in range(40):
        workflow.step()
    assert torch.isfinite(workflow.algorithm.record_step()["mean"]).all()
    assert workflow.algorithm.record_step()["mean"][0] >= -0.1


def test_its_population_is_that_of_the_library_and_it_keeps_to_bounds():
    torch.manual_seed(0)
    bounds = torch.tensor([[0.0, 0.2]] * 4)
    workflow = StdWorkflow(
        CMAES(torch.full((4,), 0.1), 1.0, bounds=bounds),
        Ellipsoid(),
        EvalMonitor(full_sol_history=True),
    )
    workflow.step()
    (points,) = workflow.monitor.get_solution_history()
    assert points.shape == (4 + int(3 * np.log(4)), 4)
    assert (points >= 0).all() and (points <= 0.2).all()


@pytest.mark.parametrize(("box", "message"), BAD_BOXES)
def test_bounds_in_half_precision_or_without_an_end_are_refused(box, message):
    with pytest.raises(ValueError, match=message):
        CMAES(torch.zeros(2), 0.3, bounds=torch.stack(box, 1))


@pytest.mark.parametrize(
    ("mean", "bounds", "message"),
    [
        (torch.zeros(2, dtype=torch.float16), None, "mean: expected float32 or float64, found"),
        (torch.tensor([0.0, torch.inf]), None, r"mean: expected finite .* found \[0.0, inf\]"),
        (torch.zeros(2), torch.ones(2), r"bounds: expected \(2, 2\), found \(2,\)"),
        (
            torch.zeros(2),
            torch.tensor([[1.0, 2.0]] * 2),
            r"mean: expected a point within .* found \[0.0, 0.0\]",
        ),
    ],
)
def test_a_start_that_cannot_be_is_refused(mean, bounds, message):
    with pytest.raises(ValueError, match=message):
        CMAES(mean, 0.3, bounds=bounds)
