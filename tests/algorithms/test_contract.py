"""What EvoX asks of every algorithm: the checks of its own test base, in every ablation and shape, and state in tensors."""

import itertools

import pytest
import torch
from evox import compile, use_state, vmap
from evox.problems.hpo_wrapper import HPOFitnessMonitor, HPOProblemWrapper
from evox.problems.numerical import Ackley, Sphere
from evox.workflows import EvalMonitor, StdWorkflow

from evox_evogm import EvoGM, Outcomes

SETTINGS = {"proposal": "paper", "n_rounds": 2, "n_iters": 1, "epochs": 3, "hidden_dims": (8,)}
ABLATIONS = {
    "paper": {},
    "single generator": {"dual": False},
    "one round": {"n_rounds": 1},
    "no cycle loss": {"cycle_weight": 0.0},
    "no clamp": {"clamp": False},
    "screened": {"proposal": "screened"},
    "outcomes": {
        "proposal": "screened",
        "outcomes": Outcomes(torch.tensor([0.5, 0.5]), torch.tensor([True, False])),
    },
}
SHAPES = [
    (3, 5),
    (1, 2),
    (64, 7),
    (2, 8),
    (10, 21),
    (4, 3),
    (5, 6),
]  # n and P: odd and even, under and over n + 1
DTYPES = [torch.float32, torch.float64]
MIXED = [  # every ablation and every shape once, in turn in float32 and float64
    (ablation, *shape, DTYPES[index % 2])
    for index, (ablation, shape) in enumerate(zip(ABLATIONS, SHAPES, strict=True))
]
EVERY = list(itertools.product(ABLATIONS, [1, 2, 3, 64], [2, 7, 8, 65], DTYPES))
CORNERS = [case for case in EVERY if case[1:3] in ((1, 2), (1, 7), (3, 8), (64, 2), (64, 65))]


class AckleyInParts(Ackley):
    """Ackley's function as the mean of two outcomes: whether the first coordinate is above 0, and what is left."""

    def evaluate(self, pop):
        fitness, first = super().evaluate(pop), pop[:, 0]
        return torch.stack([fitness, first, 2 * fitness - (first > 0).to(first)], 1)


def make_workflow(n=3, pop_size=5, dtype=torch.float32, **changes):
    bounds = torch.full((n,), 4.0, dtype=dtype)
    algorithm = EvoGM(pop_size, -bounds, bounds, **{**SETTINGS, **changes})
    if "outcomes" in changes:
        return StdWorkflow(algorithm, AckleyInParts())
    return StdWorkflow(algorithm, Ackley(), EvalMonitor(full_fit_history=False))


def check_record(record, n, pop_size, dtype):
    assert record["pop"].shape[-2:] == (pop_size, n) and record["fit"].shape[-1:] == (pop_size,)
    assert record["pop"].dtype == record["fit"].dtype == dtype
    assert torch.isfinite(record["pop"]).all() and torch.isfinite(record["fit"]).all()


def run_algorithm(workflow, step, steps=5):
    """From the first points over trained steps and the start of the second round to steps beyond the plan."""
    workflow.init_step()
    for _ in range(steps):
        step()
    return workflow.algorithm.record_step()


def run_vmap_algorithm(workflow, instances=3, steps=5, compiled=True):
    parameters, buffers = torch.func.stack_module_state([workflow] * instances)
    state = vmap(use_state(workflow.init_step), randomness="different")({**parameters, **buffers})
    step = vmap(use_state(workflow.step), randomness="different")
    step = compile(step) if compiled else step
    for _ in range(steps):
        state = step(state)
    return state


def check_vmapped(state, n, pop_size, dtype, instances=3):
    points, fitness = (
        state["algorithm.points"][:, :pop_size],
        state["algorithm.fitness"][:, :pop_size],
    )
    check_record({"pop": points, "fit": fitness}, n, pop_size, dtype)
    assert len(state["algorithm.points"].unique(dim=0)) == instances


@pytest.mark.parametrize(("ablation", "n", "pop_size", "dtype"), EVERY)
def test_steps_run_eagerly(ablation, n, pop_size, dtype):
    workflow = make_workflow(n, pop_size, dtype, **ABLATIONS[ablation])
    check_record(run_algorithm(workflow, workflow.step), n, pop_size, dtype)


@pytest.mark.parametrize(("ablation", "n", "pop_size", "dtype"), MIXED)
def test_steps_run_compiled(ablation, n, pop_size, dtype):
    workflow = make_workflow(n, pop_size, dtype, **ABLATIONS[ablation])
    check_record(run_algorithm(workflow, compile(workflow.step)), n, pop_size, dtype)


@pytest.mark.parametrize(("ablation", "n", "pop_size", "dtype"), MIXED)
def test_steps_run_vmapped_and_compiled_and_differ_between_runs(ablation, n, pop_size, dtype):
    workflow = make_workflow(n, pop_size, dtype, **ABLATIONS[ablation])
    check_vmapped(run_vmap_algorithm(workflow), n, pop_size, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("ablation", "n", "pop_size", "dtype"), CORNERS)
def test_steps_run_compiled_and_vmapped_in_every_ablation(ablation, n, pop_size, dtype):
    torch.compiler.reset()
    workflow = make_workflow(n, pop_size, dtype, **ABLATIONS[ablation])
    check_record(run_algorithm(workflow, compile(workflow.step)), n, pop_size, dtype)
    check_vmapped(
        run_vmap_algorithm(make_workflow(n, pop_size, dtype, **ABLATIONS[ablation])),
        n,
        pop_size,
        dtype,
    )


def test_a_compiled_step_gives_the_points_of_the_eager_one():
    records = []
    for compiled in (False, True):
        torch.manual_seed(5)
        workflow = make_workflow()
        with torch._inductor.config.patch(
            fallback_random=True
        ):  # the random numbers of eager torch
            records.append(
                run_algorithm(workflow, compile(workflow.step) if compiled else workflow.step)
            )
    for eager, compiled in zip(records[0].values(), records[1].values(), strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize("ablation", ["paper", "screened", "outcomes"])
@pytest.mark.parametrize("before", [0, 1, 2])  # in the middle of a round, and before the next one
def test_a_state_taken_in_the_middle_of_a_run_goes_on_to_the_same_points(before, ablation):
    torch.manual_seed(0)
    workflow = make_workflow(n_iters=3, **ABLATIONS[ablation])
    run_algorithm(workflow, workflow.step, steps=1 + before)
    state = {name: value.clone() for name, value in workflow.algorithm.state_dict().items()}
    random_state = torch.get_rng_state()
    for _ in range(4):
        workflow.step()
    resumed = make_workflow(n_iters=3, **ABLATIONS[ablation])
    resumed.algorithm.load_state_dict(state)
    torch.set_rng_state(random_state)
    for _ in range(4):
        resumed.step()
    for name, value in workflow.algorithm.state_dict().items():
        assert torch.equal(value, resumed.algorithm.state_dict()[name]), name


def test_stacked_copies_of_one_workflow_start_with_generators_of_their_own():
    state = run_vmap_algorithm(make_workflow(), steps=0, compiled=False)
    assert len(state["algorithm.generators"].unique(dim=0)) == 3


def make_tuning(instances, iterations, **changes):
    bounds = torch.full((2,), 4.0)
    workflow = StdWorkflow(
        EvoGM(8, -bounds, bounds, **{**SETTINGS, "n_iters": 3, **changes}),
        Sphere(),
        HPOFitnessMonitor(),
    )
    return HPOProblemWrapper(
        iterations=iterations, num_instances=instances, workflow=workflow, copy_init_state=True
    )


def test_tuning_by_evox_evaluates_each_setting_as_a_run_of_its_own():
    settings = {
        "algorithm.lr": torch.tensor([0.0, 1e-2, 1e-2]),
        "algorithm.winner_ratio": torch.tensor([0.3, 0.3, 0.8]),
        "algorithm.cycle_weight": torch.tensor([100.0, 1.0, 1.0]),
        "algorithm.opt_weight": torch.tensor([1.0, 5.0, 5.0]),
    }
    torch.manual_seed(3)
    problem = make_tuning(3, iterations=4, epochs=20)
    assert settings.keys() <= set(problem.get_params_keys())
    torch.manual_seed(3)
    together = problem.evaluate(
        {name: torch.nn.Parameter(values, requires_grad=False) for name, values in settings.items()}
    )
    for index in range(3):
        alone = {
            name.removeprefix("algorithm."): float(values[index])
            for name, values in settings.items()
        }
        torch.manual_seed(3)
        bounds = torch.full((2,), 4.0)
        algorithm = EvoGM(8, -bounds, bounds, **{**SETTINGS, "n_iters": 3, "epochs": 20, **alone})
        monitor = EvalMonitor()
        workflow = StdWorkflow(algorithm, Sphere(), monitor)
        torch.manual_seed(3)
        run_algorithm(workflow, workflow.step, steps=3)
        torch.testing.assert_close(
            together[index], monitor.get_best_fitness(), rtol=1e-3, atol=1e-5
        )
    assert len(together.unique()) > 1


@pytest.mark.parametrize("ablation", ["screened", "outcomes"])
def test_tuning_of_a_screened_search_runs(ablation):
    bounds = torch.full((2,), 4.0)
    problem = AckleyInParts() if ablation == "outcomes" else Ackley()
    monitor = HPOFitnessMonitor(multi_obj_metric=lambda fitness: fitness[:, 0].min())
    algorithm = EvoGM(4, -bounds, bounds, **{**SETTINGS, **ABLATIONS[ablation]})
    wrapper = HPOProblemWrapper(
        iterations=4,
        num_instances=2,
        workflow=StdWorkflow(algorithm, problem, monitor),
        copy_init_state=True,
    )
    fitness = wrapper.evaluate(
        {"algorithm.lr": torch.nn.Parameter(torch.tensor([1e-4, 1e-2]), requires_grad=False)}
    )
    assert fitness.shape == (2,) and torch.isfinite(fitness).all()


def test_tuning_with_repeats_runs():
    # EvoX then calls `step` in place of `init_step`: the first points are the average and random ones.
    bounds = torch.full((2,), 4.0)
    workflow = StdWorkflow(EvoGM(8, -bounds, bounds, **SETTINGS), Sphere(), HPOFitnessMonitor())
    problem = HPOProblemWrapper(
        iterations=4, num_instances=2, workflow=workflow, num_repeats=3, copy_init_state=True
    )
    fitness = problem.evaluate(
        {"algorithm.lr": torch.nn.Parameter(torch.tensor([1e-4, 1e-2]), requires_grad=False)}
    )
    assert fitness.shape == (2,) and torch.isfinite(fitness).all()
