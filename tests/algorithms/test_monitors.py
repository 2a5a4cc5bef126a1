"""EvoGM under EvoX's monitor, directions and transforms: what is recorded is what was evaluated."""

import pytest
import torch
from evox.problems.numerical import Sphere
from evox.workflows import EvalMonitor, StdWorkflow

from evox_evogm import EvoGM

POP_SIZE, N, STEPS = 6, 3, 5


def run(problem=None, monitor=None, **settings):
    torch.manual_seed(1)
    bounds = torch.full((N,), 4.0)
    algorithm = EvoGM(POP_SIZE, -bounds, bounds, n_iters=1, epochs=5, hidden_dims=(8,))
    workflow = StdWorkflow(
        algorithm, problem or Sphere(), monitor or EvalMonitor(full_sol_history=True), **settings
    )
    workflow.init_step()
    for _ in range(STEPS - 1):
        workflow.step()
    return workflow


def test_histories_hold_every_evaluated_point_with_its_fitness():
    monitor = run().monitor
    solutions, fitness = monitor.get_solution_history(), monitor.get_fitness_history()
    assert len(solutions) == len(fitness) == STEPS
    for points, values in zip(solutions, fitness, strict=True):
        assert points.shape == (POP_SIZE, N)
        torch.testing.assert_close((points**2).sum(1), values)


def test_the_top_three_are_the_best_of_the_history():
    monitor = run(monitor=EvalMonitor(topk=3, full_sol_history=True)).monitor
    everything = torch.cat(monitor.get_fitness_history())
    torch.testing.assert_close(
        monitor.get_topk_fitness().sort().values, everything.sort().values[:3]
    )
    torch.testing.assert_close(
        (monitor.get_topk_solutions() ** 2).sum(1), monitor.get_topk_fitness()
    )


def test_the_history_of_populations_holds_the_best_points_of_each_round():
    monitor = run(monitor=EvalMonitor(full_pop_history=True, full_sol_history=True)).monitor
    history, evaluated = monitor.aux_history, monitor.get_fitness_history()
    assert [int(r) for r in history["round"]] == [0, 0, 1, 1, 1] and [
        int(i) for i in history["iteration"]
    ] == [0, 1, 0, 1, 2]
    torch.testing.assert_close(history["fit"][1], torch.cat(evaluated[:2]).sort().values[:POP_SIZE])
    for population, fitness in zip(history["pop"], history["fit"], strict=True):
        torch.testing.assert_close((population**2).sum(1), fitness)


class Hill(Sphere):
    """The negated sphere, to be maximised."""

    def evaluate(self, pop):
        return -super().evaluate(pop)


def test_maximising_the_negated_problem_is_the_same_search():
    up, down = run(Hill(), opt_direction="max").monitor, run().monitor
    assert torch.equal(
        torch.stack(up.get_solution_history()), torch.stack(down.get_solution_history())
    )
    torch.testing.assert_close(up.get_best_fitness(), -down.get_best_fitness())


class Halve(torch.nn.Module):
    def forward(self, points):
        return points / 2


class Ranks(torch.nn.Module):
    """Fitness by its rank in the population."""

    def forward(self, fitness):
        return fitness.argsort().argsort().to(fitness.dtype)


def test_a_solution_transform_changes_what_the_problem_sees():
    monitor = run(solution_transform=Halve()).monitor
    for points, values in zip(
        monitor.get_solution_history(), monitor.get_fitness_history(), strict=True
    ):
        torch.testing.assert_close((points**2).sum(1) / 4, values)


def test_a_fitness_transform_changes_what_the_algorithm_sees():
    workflow = run(fitness_transform=Ranks())
    assert set(
        workflow.algorithm.fitness[torch.isfinite(workflow.algorithm.fitness)].tolist()
    ) <= set(range(POP_SIZE))


@pytest.mark.parametrize("source", ["eval", "pop"])
def test_a_run_can_be_plotted(source):
    pytest.importorskip("plotly")
    figure = run(monitor=EvalMonitor(full_pop_history=True)).monitor.plot(source=source)
    assert figure is not None and len(figure.data) > 0
