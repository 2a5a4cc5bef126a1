"""EvoX's contract for algorithms: eager, compiled, vmapped, tuned, resumed from their state."""

import pytest
import torch
from contract import (
    BAD_BOXES,
    bfloat16_by_default,
    check_record,
    check_records_agree,
    run_algorithm,
    run_eager_and_compiled,
)
from contract import run_vmap_algorithm as run_vmapped
from evox import compile
from evox.problems.hpo_wrapper import HPOFitnessMonitor, HPOProblemWrapper
from evox.problems.numerical import Ackley, Sphere
from evox.workflows import EvalMonitor, StdWorkflow

from evox_evogm import EvoGM, Outcomes, SurrogateEvoGM

SMALL = {"epochs": 3, "hidden_dims": (8,)}
TWO_OUTCOMES = Outcomes(torch.tensor([0.5, 0.5]), torch.tensor([True, False]))
SEARCHES = {
    "EvoGM": (EvoGM, {"n_iters": 1}),
    "single generator": (EvoGM, {"n_iters": 1, "dual": False}),
    "one round": (EvoGM, {"n_iters": 1, "n_rounds": 1}),
    "no cycle loss": (EvoGM, {"n_iters": 1, "cycle_weight": 0.0}),
    "no clamp": (EvoGM, {"n_iters": 1, "clamp": False}),
    "SurrogateEvoGM": (SurrogateEvoGM, {}),
    "outcomes": (SurrogateEvoGM, {"outcomes": TWO_OUTCOMES}),
    "blocks": (SurrogateEvoGM, {"blocks": 1}),
}
# n and P: odd and even, under and over n + 1, each with one search.
SHAPES = [(3, 5), (1, 2), (64, 7), (2, 8), (10, 21), (4, 3), (5, 6), (6, 4)]
DTYPES = [torch.float32, torch.float64]
MIXED = [
    (search, *shape, DTYPES[index % 2])
    for index, (search, shape) in enumerate(zip(SEARCHES, SHAPES, strict=True))
]
# Compiled: variants of a search take the same paths.
PLAIN = ("EvoGM", "outcomes")
MIXED_COMPILED = []
for case in MIXED:
    marks = () if case[0] in PLAIN else pytest.mark.slow
    MIXED_COMPILED.append(pytest.param(*case, marks=marks))
# The risky pairs: one dimension, fewer points than dimensions, one more than dimensions, many.
RISKY_SHAPES = [(1, 2), (64, 2), (64, 65), (1, 7), (3, 4)]
CORNERS = [
    (search, *shape, DTYPES[index % 2])
    for search in SEARCHES
    for index, shape in enumerate(RISKY_SHAPES)
]
CASES = ("search", "n", "pop_size", "dtype")


class AckleyInParts(Ackley):
    """Ackley's function as the mean of two outcomes: the sign of the first coordinate, the rest."""

    def evaluate(self, pop):
        fitness, first = super().evaluate(pop), pop[:, 0]
        return torch.stack([fitness, first, 2 * fitness - (first > 0).to(first)], 1)


def make_workflow(search="EvoGM", n=3, pop_size=5, dtype=torch.float32, **changes):
    algorithm, settings = SEARCHES[search]
    bounds = torch.full((n,), 4.0, dtype=dtype)
    small = SMALL if algorithm is EvoGM else {}
    algorithm = algorithm(pop_size, -bounds, bounds, **{**small, **settings, **changes})
    if "outcomes" in settings:
        return StdWorkflow(algorithm, AckleyInParts())
    return StdWorkflow(algorithm, Ackley(), EvalMonitor(full_fit_history=False))


def check_vmapped(state, n, pop_size, dtype, instances=3):
    points = state["algorithm.points"]
    fitness = state["algorithm.fitness"]
    check_record({"pop": points[:, :pop_size], "fit": fitness[:, :pop_size]}, n, pop_size, dtype)
    assert len(points.unique(dim=0)) == instances


@pytest.mark.parametrize(CASES, MIXED + CORNERS)
def test_steps_run_eagerly(search, n, pop_size, dtype):
    workflow = make_workflow(search, n, pop_size, dtype)
    check_record(run_algorithm(workflow, workflow.step), n, pop_size, dtype)


@pytest.mark.parametrize("search", SEARCHES)
def test_the_default_dtype_of_the_caller_changes_no_number(search):
    def run():
        torch.manual_seed(2)
        workflow = make_workflow(search, n=3, pop_size=5)
        run_algorithm(workflow, workflow.step)
        return workflow.algorithm.state_dict()

    expected = run()
    with bfloat16_by_default():
        found = run()
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(found[name], values), name


@pytest.mark.parametrize("search", [EvoGM, SurrogateEvoGM])
@pytest.mark.parametrize(("box", "message"), BAD_BOXES)
def test_a_box_in_half_precision_or_without_an_end_is_refused(search, box, message):
    with pytest.raises(ValueError, match=message):
        search(4, *box)


@pytest.mark.slow  # the default tests compile the vmapped step
@pytest.mark.compiled
@pytest.mark.parametrize(CASES, MIXED)
def test_steps_run_compiled(search, n, pop_size, dtype):
    workflow = make_workflow(search, n, pop_size, dtype)
    check_record(run_algorithm(workflow, compile(workflow.step)), n, pop_size, dtype)


@pytest.mark.compiled
@pytest.mark.parametrize(CASES, MIXED_COMPILED)
def test_steps_run_vmapped_and_compiled_and_differ_between_runs(search, n, pop_size, dtype):
    workflow = make_workflow(search, n, pop_size, dtype)
    check_vmapped(run_vmapped(workflow), n, pop_size, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(CASES, CORNERS)
def test_steps_run_compiled_and_vmapped_in_every_corner(search, n, pop_size, dtype):
    torch.compiler.reset()
    workflow = make_workflow(search, n, pop_size, dtype)
    check_record(run_algorithm(workflow, compile(workflow.step)), n, pop_size, dtype)
    check_vmapped(run_vmapped(make_workflow(search, n, pop_size, dtype)), n, pop_size, dtype)


@pytest.mark.compiled
def test_a_compiled_step_gives_the_points_of_the_eager_one():
    check_records_agree(*run_eager_and_compiled(make_workflow, seed=5))


@pytest.mark.compiled
def test_epochs_are_not_unrolled_into_the_compiled_graph():
    def nodes_of_a_step(epochs):
        counts = []

        def count(graph, inputs):
            counts.append(len(graph.graph.nodes))
            return graph

        workflow = make_workflow(epochs=epochs)
        workflow.init_step()
        torch.compiler.reset()
        torch.compile(workflow.step, backend=count)()
        return sum(counts)

    assert nodes_of_a_step(2) == nodes_of_a_step(50)


@pytest.mark.parametrize("search", ["EvoGM", "SurrogateEvoGM", "outcomes"])
@pytest.mark.parametrize("before", [0, 1, 2])  # in the middle of a round, and before the next one
def test_a_state_taken_in_the_middle_of_a_run_goes_on_to_the_same_points(before, search):
    changes = {"n_iters": 3} if search == "EvoGM" else {}
    torch.manual_seed(0)
    workflow = make_workflow(search, **changes)
    run_algorithm(workflow, workflow.step, steps=1 + before)
    state = {name: value.clone() for name, value in workflow.algorithm.state_dict().items()}
    random_state = torch.get_rng_state()
    for _ in range(4):
        workflow.step()
    resumed = make_workflow(search, **changes)
    resumed.algorithm.load_state_dict(state)
    torch.set_rng_state(random_state)
    for _ in range(4):
        resumed.step()
    for name, value in workflow.algorithm.state_dict().items():
        assert torch.equal(value, resumed.algorithm.state_dict()[name]), name


def test_stacked_copies_of_one_workflow_start_with_generators_of_their_own():
    state = run_vmapped(make_workflow(), steps=0, compiled=False)
    assert len(state["algorithm.generators"].unique(dim=0)) == 3


def make_tuning(instances, iterations, **changes):
    bounds = torch.full((2,), 4.0)
    algorithm = EvoGM(8, -bounds, bounds, **{**SMALL, "n_iters": 3, **changes})
    return HPOProblemWrapper(
        iterations=iterations,
        num_instances=instances,
        workflow=StdWorkflow(algorithm, Sphere(), HPOFitnessMonitor()),
        copy_init_state=True,
    )


def frozen(values):
    return torch.nn.Parameter(torch.as_tensor(values), requires_grad=False)


def test_tuning_by_evox_evaluates_each_setting_as_a_run_of_its_own():
    settings = {
        "lr": [0.0, 1e-2, 1e-2],
        "winner_ratio": [0.3, 0.3, 0.8],
        "cycle_weight": [100.0, 1.0, 1.0],
        "opt_weight": [1.0, 5.0, 5.0],
    }
    torch.manual_seed(3)
    problem = make_tuning(3, iterations=4, epochs=20)
    parameters = {f"algorithm.{name}": frozen(values) for name, values in settings.items()}
    assert parameters.keys() <= set(problem.get_params_keys())
    torch.manual_seed(3)
    together = problem.evaluate(parameters)
    for index in range(3):
        alone = {name: values[index] for name, values in settings.items()}
        torch.manual_seed(3)
        bounds = torch.full((2,), 4.0)
        algorithm = EvoGM(8, -bounds, bounds, **{**SMALL, "n_iters": 3, "epochs": 20, **alone})
        monitor = EvalMonitor()
        workflow = StdWorkflow(algorithm, Sphere(), monitor)
        torch.manual_seed(3)
        run_algorithm(workflow, workflow.step, steps=3)
        best = monitor.get_best_fitness()
        torch.testing.assert_close(together[index], best, rtol=1e-3, atol=1e-5)
    assert len(together.unique()) > 1


@pytest.mark.parametrize("search", ["SurrogateEvoGM", "outcomes"])
def test_tuning_of_a_surrogate_driven_search_runs(search):
    bounds = torch.full((2,), 4.0)
    problem = AckleyInParts() if search == "outcomes" else Ackley()
    monitor = HPOFitnessMonitor(multi_obj_metric=lambda fitness: fitness[:, 0].min())
    algorithm = SurrogateEvoGM(4, -bounds, bounds, **SEARCHES[search][1])
    wrapper = HPOProblemWrapper(
        iterations=4,
        num_instances=2,
        workflow=StdWorkflow(algorithm, problem, monitor),
        copy_init_state=True,
    )
    fitness = wrapper.evaluate({"algorithm.box_growth": frozen([0.0, 0.5])})
    assert fitness.shape == (2,) and torch.isfinite(fitness).all()


def test_tuning_with_repeats_runs():
    # EvoX then calls `step` in place of `init_step`: the first points are the average and random.
    bounds = torch.full((2,), 4.0)
    workflow = StdWorkflow(EvoGM(8, -bounds, bounds, **SMALL), Sphere(), HPOFitnessMonitor())
    problem = HPOProblemWrapper(
        iterations=4, num_instances=2, workflow=workflow, num_repeats=3, copy_init_state=True
    )
    fitness = problem.evaluate({"algorithm.lr": frozen([1e-4, 1e-2])})
    assert fitness.shape == (2,) and torch.isfinite(fitness).all()
