"""The search along gradients: its arithmetic, EvoX's contract, and what it reaches."""

import pytest
import torch
from contract import (
    bfloat16_by_default,
    check_record,
    check_records_agree,
    run_algorithm,
    run_eager_and_compiled,
    run_vmap_algorithm,
)
from evox.core import Problem
from evox.workflows import EvalMonitor, StdWorkflow

from evox_evogm import GradientSearch, Outcomes

TARGET = torch.tensor([0.5, -0.3, 0.2, 0.8])
ONE = Outcomes(torch.ones(1), torch.tensor([False]))
SCALE = torch.tensor([1.0, 10.0, 0.1, 3.0])


class Bowl(Problem):
    """A quadratic bowl with one outcome, which is the fitness, and its gradient."""

    def evaluate(self, pop):
        apart = pop - TARGET.to(pop)
        fitness = (SCALE.to(pop) * apart.square()).sum(1, keepdim=True)
        return torch.cat([fitness, fitness, 2 * SCALE.to(pop) * apart], 1)


class Failing(Bowl):
    """The bowl, in which points beyond a border fail."""

    def evaluate(self, pop):
        fitness = super().evaluate(pop)
        return torch.where(pop[:, :1] > 0.1, torch.nan, fitness)


def make_workflow(pop_size=2, dtype=torch.float32, problem=None, monitor=None, **settings):
    settings = {"outcomes": ONE, "blocks": 2, **settings}
    algorithm = GradientSearch(torch.zeros(4, dtype=dtype), pop_size, **settings)
    return StdWorkflow(algorithm, problem or Bowl(), monitor=monitor)


def plain_adam(points, lr, shrinkage):
    """torch's own Adam on the gradients at given points; all its iterates and their average.

    :param points: per step a `(P, n)` tensor.
    """
    iterate = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.Adam([iterate], lr=lr, betas=(0.9, 0.99))
    iterates = []
    for pop in points:
        mean = iterate.detach().view(2, 2).mean(1).repeat_interleave(2)
        gradients = (2 * SCALE * (pop - TARGET)).mean(0)
        iterate.grad = gradients + shrinkage * (iterate.detach() - mean)
        optimizer.step()
        iterates.append(iterate.detach().clone())
    average = torch.zeros(4)
    for number, one in enumerate(iterates, 1):
        average += 4 / (number + 3) * (one - average)
    return iterates, average


def test_it_is_adam_on_the_gradients_of_perturbed_points():
    torch.manual_seed(0)
    workflow = make_workflow(3, lr=0.05, shrinkage=0.3, perturbation=0.2)
    workflow.init_step()
    points = [workflow.algorithm.pop.clone()]
    for _ in range(6):
        workflow.step()
        points.append(workflow.algorithm.pop.clone())
    iterates, average = plain_adam(points[:-1], 0.05, 0.3)
    torch.testing.assert_close(workflow.algorithm.iterate, iterates[-1])
    torch.testing.assert_close(workflow.algorithm.average, average)
    _, average = plain_adam(points, 0.05, 0.3)
    torch.testing.assert_close(workflow.algorithm.recommend(evaluate=False), average)
    assert torch.equal(points[0][0], torch.zeros(4))
    around = (points[-1] - iterates[-1]).std()
    assert 0.05 < around < 0.5


def test_it_comes_to_the_bottom():
    torch.manual_seed(1)
    workflow = make_workflow(1, perturbation=0.05, shrinkage=0.0)
    workflow.init_step()
    for _ in range(200):
        workflow.step()
    torch.testing.assert_close(workflow.algorithm.recommend(), TARGET, atol=0.05, rtol=0)


class Uphill(Bowl):
    """The bowl with gradients that point the wrong way."""

    def evaluate(self, pop):
        fitness = super().evaluate(pop)
        return torch.cat([fitness[:, :2], -fitness[:, 2:]], 1)


def test_an_average_that_is_worse_than_an_evaluated_point_is_not_recommended():
    torch.manual_seed(10)
    workflow = make_workflow(1, problem=Uphill(), perturbation=0.0)
    workflow.init_step()
    for _ in range(10):
        workflow.step()
    assert torch.equal(workflow.algorithm.recommend(), torch.zeros(4))  # the start
    assert not torch.equal(workflow.algorithm.recommend(evaluate=False), torch.zeros(4))


def test_outcomes_that_count_by_sign_decide_by_their_probability():
    """Of two points with one fitness, that with the larger margin is better."""

    class Margins(Problem):
        def evaluate(self, pop):
            fitness = torch.zeros(len(pop), 1)
            return torch.cat([fitness, pop - 1, torch.ones_like(pop)], 1)

    outcomes = Outcomes(torch.ones(1), torch.tensor([True]))
    algorithm = GradientSearch(torch.zeros(1), outcomes=outcomes, lr=0.1, perturbation=0.0)
    workflow = StdWorkflow(algorithm, Margins())
    workflow.init_step()
    for _ in range(3):
        workflow.step()
    torch.testing.assert_close(workflow.algorithm.best, torch.tensor([-0.3]))


def test_shrinkage_draws_a_block_to_its_mean():
    spread = []
    for shrinkage in (0.0, 1.0, 100.0):
        torch.manual_seed(2)
        workflow = make_workflow(1, shrinkage=shrinkage)
        run_algorithm(workflow, workflow.step, 60)
        spread.append(float(workflow.algorithm.average.view(2, 2).diff(dim=1).abs().sum()))
    assert spread[0] > spread[1] > spread[2]


def test_gradients_of_failed_points_are_left_out():
    torch.manual_seed(3)
    workflow = make_workflow(4, problem=Failing())
    record = run_algorithm(workflow, workflow.step, 30)
    assert record["average"].isfinite().all() and record["fit"].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pop_size", [1, 3])
def test_it_keeps_the_contract(pop_size, dtype):
    torch.manual_seed(4)
    monitor = EvalMonitor(full_fit_history=True, full_sol_history=True)
    workflow = make_workflow(pop_size, dtype, monitor=monitor)
    check_record(run_algorithm(workflow, workflow.step), 4, pop_size, dtype)
    assert len(monitor.get_fitness_history()) == 6


@pytest.mark.compiled
def test_compiled_it_gives_the_same():
    check_records_agree(*run_eager_and_compiled(make_workflow, 5))


def test_vmapped_runs_differ():
    torch.manual_seed(6)
    state = run_vmap_algorithm(make_workflow(2), compiled=False)
    points = state["algorithm.pop"]
    assert points.shape == (3, 2, 4) and len(points.flatten(1).unique(dim=0)) == 3


def test_a_state_that_was_saved_goes_on_alike():
    torch.manual_seed(7)
    workflow = make_workflow()
    run_algorithm(workflow, workflow.step, 4)
    saved = {key: value.clone() for key, value in workflow.state_dict().items()}
    torch.manual_seed(8)
    workflow.step()
    expected = workflow.algorithm.average.clone()
    other = make_workflow()
    other.load_state_dict(saved)
    torch.manual_seed(8)
    other.step()
    assert torch.equal(other.algorithm.average, expected)


def test_the_default_dtype_changes_nothing():
    torch.manual_seed(9)
    expected = run_algorithm(make_workflow(), None, 0)["pop"]
    with bfloat16_by_default():
        torch.manual_seed(9)
        found = run_algorithm(make_workflow(), None, 0)["pop"]
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": [0.0]}, r"start: expected a tensor \(n,\)"),
        ({"start": torch.zeros(2, dtype=torch.float16)}, "start: expected float32 or float64"),
        ({"start": torch.tensor([torch.nan])}, "start: expected finite numbers"),
        ({"pop_size": 0}, "pop_size: expected a whole number of at least 1"),
        ({"blocks": 3}, "blocks: expected a divisor of 4 coordinates, found 3"),
        ({"lr": -1.0}, "lr: expected a number of at least 0"),
        ({"perturbation": float("nan")}, "perturbation: expected a number of at least 0"),
        ({"outcomes": (torch.ones(2), torch.ones(1))}, r"outcomes: expected weights \(S,\)"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        GradientSearch(**{"start": torch.zeros(4), **changes})


def test_a_problem_without_gradients_is_refused():
    workflow = make_workflow(outcomes=None)
    with pytest.raises(ValueError, match=r"expected fitness \(2, 5\), a row per point"):
        workflow.init_step()


class OnMinibatches(Problem):
    """A bowl whose two outcomes are seen in turn."""

    def __init__(self):
        super().__init__()
        self.points = []

    def evaluate(self, pop):
        apart = pop - TARGET
        outcomes = torch.stack([apart[:, :2].square().sum(1), apart[:, 2:].square().sum(1)], 1)
        outcomes[:, len(self.points) % 2] = torch.nan
        self.points.append(pop)
        return torch.cat([outcomes.nansum(1, keepdim=True), outcomes, 2 * apart], 1)


def test_on_minibatches_the_average_is_recommended_without_an_evaluation():
    """Fitness on different examples cannot be compared, so no point is the best."""
    problem = OnMinibatches()
    outcomes = Outcomes(torch.tensor([0.25, 0.75]), torch.tensor([False, False]))
    workflow = make_workflow(1, problem=problem, outcomes=outcomes)
    workflow.init_step()
    for _ in range(5):
        workflow.step()
    evaluated = len(problem.points)
    recommended = workflow.algorithm.recommend()
    assert len(problem.points) == evaluated == 6
    torch.testing.assert_close(recommended, workflow.algorithm.recommend(evaluate=False))
    assert bool(workflow.algorithm.best_smoothed.isinf())


def test_outcomes_that_are_not_known_are_left_out_of_the_smoothed_fitness():
    outcomes = Outcomes(torch.tensor([0.1, 0.3, 0.6]), torch.tensor([False, True, False]))
    search = GradientSearch(torch.zeros(2), outcomes=outcomes)
    nan, inf = torch.nan, torch.inf
    fitness = torch.tensor(
        [[9.0, 2.0, 0.0, 1.0], [9.0, nan, 0.0, 1.0], [nan, nan, nan, nan], [9.0, 2.0, inf, nan]]
    )
    expected = [0.2 + 0.15 + 0.6, (0.15 + 0.6) / 0.9, torch.finfo(torch.float32).max, 0.5 / 0.4]
    torch.testing.assert_close(search.smoothed(fitness), torch.tensor(expected))
