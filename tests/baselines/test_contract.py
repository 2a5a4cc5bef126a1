"""Baselines in EvoX: eager, compiled, vmapped; failed evaluations; arguments that are refused."""

import pytest
import torch
from bowls import Bowl, FailingBowl, box, evaluated_points
from contract import (
    BAD_BOXES,
    bfloat16_by_default,
    check_record,
    check_records_agree,
    run_algorithm,
    run_eager_and_compiled,
    run_vmap_algorithm,
)
from evox.problems.numerical import Sphere
from evox.workflows import EvalMonitor, StdWorkflow

from evox_evogm.baselines import (
    CMAES,
    BayesianOptimization,
    ModelSwarms,
    PSOMerging,
    RandomSearch,
)

# Those whose state is in tensors. The others are not for compilation.
IN_TENSORS = {
    "random search": (RandomSearch, {}),
    "Model Swarms": (ModelSwarms, {}),
    "Model Swarms known": (ModelSwarms, {"start": "known"}),
    "PSO-Merging": (PSOMerging, {}),
    "PSO-Merging known": (PSOMerging, {"start": "known"}),
}
SHAPES = [(3, 7, torch.float32), (1, 2, torch.float64), (6, 4, torch.float64)]
# Every algorithm and every shape, and both swarms in the one dimension where no two experts differ.
COMPILED = [
    ("random search", 6, 4, torch.float64),
    ("Model Swarms", 1, 2, torch.float64),
    ("Model Swarms known", 3, 7, torch.float32),
    ("PSO-Merging", 1, 2, torch.float64),
    ("PSO-Merging known", 6, 4, torch.float64),
]


def make_algorithm(name, pop_size, n, dtype=torch.float32):
    algorithm, settings = IN_TENSORS[name]
    return algorithm(pop_size, *box(n, dtype), **settings)


@pytest.mark.parametrize("name", IN_TENSORS)
@pytest.mark.parametrize(("n", "pop_size", "dtype"), SHAPES)
def test_steps_run_eagerly(name, n, pop_size, dtype):
    workflow = StdWorkflow(make_algorithm(name, pop_size, n, dtype), Sphere())
    check_record(run_algorithm(workflow, workflow.step), n, pop_size, dtype)


@pytest.mark.compiled
@pytest.mark.parametrize(("name", "n", "pop_size", "dtype"), COMPILED)
def test_a_compiled_step_gives_the_points_of_the_eager_one(name, n, pop_size, dtype):
    def make_workflow():
        return StdWorkflow(make_algorithm(name, pop_size, n, dtype), Sphere())

    eager, compiled = run_eager_and_compiled(make_workflow, seed=3)
    check_record(compiled, n, pop_size, dtype)
    check_records_agree(eager, compiled)


@pytest.mark.compiled
@pytest.mark.parametrize("name", ["random search", "Model Swarms", "PSO-Merging"])
def test_instances_run_vmapped_and_compiled_and_differ(name):
    state = run_vmap_algorithm(StdWorkflow(make_algorithm(name, 7, 3), Sphere()))
    record = {"pop": state["algorithm.pop"], "fit": state["algorithm.fit"]}
    check_record(record, 3, 7, torch.float32)
    assert len(record["pop"].unique(dim=0)) == 3


@pytest.mark.parametrize("name", IN_TENSORS)
def test_a_step_before_init_step_runs(name):
    # As in tuning with repeats by EvoX.
    workflow = StdWorkflow(make_algorithm(name, 7, 3), Bowl())
    for _ in range(3):
        workflow.step()
    assert torch.isfinite(workflow.algorithm.pop).all()
    assert (workflow.algorithm.fit < 100).all()


@pytest.mark.parametrize("name", IN_TENSORS)
def test_failed_evaluations_count_as_worst(name):
    torch.manual_seed(0)
    algorithm = make_algorithm(name, 8, 3)
    points = evaluated_points(algorithm, 8, FailingBowl())
    assert torch.isfinite(points).all()
    assert not FailingBowl().evaluate(points.flatten(0, 1)).isfinite().all()
    assert algorithm.fit.isfinite().all()
    if hasattr(algorithm, "global_best"):
        assert FailingBowl().evaluate(algorithm.global_best[None]).isfinite()


@pytest.mark.parametrize("make", [RandomSearch, ModelSwarms, PSOMerging, BayesianOptimization])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, *box(2)), r"pop_size: expected a whole number of at least [12], found 0"),
        ((2.5, *box(2)), "pop_size: .* found 2.5"),
        ((4, [0.0], torch.ones(1)), r"lb: expected a tensor, found \[0.0\]"),
        (
            (4, torch.zeros(2), torch.ones(3)),
            r"lb and ub: expected two .* found \(2,\) torch.float32 and \(3,\)",
        ),
        (
            (4, torch.zeros(2, dtype=torch.long), torch.ones(2, dtype=torch.long)),
            "lb and ub: .* torch.int64",
        ),
        (
            (4, torch.zeros(2), torch.tensor([1.0, 0.0])),
            r"expected lb < ub .* found lb \[0.0, 0.0\], ub \[1.0, 0.0\]",
        ),
    ],
)
def test_sizes_and_boxes_that_cannot_be_are_refused(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(*arguments)


@pytest.mark.parametrize("make", [RandomSearch, ModelSwarms, PSOMerging, BayesianOptimization])
@pytest.mark.parametrize(("box", "message"), BAD_BOXES)
def test_a_box_in_half_precision_or_without_an_end_is_refused(make, box, message):
    with pytest.raises(ValueError, match=message):
        make(4, *box)


@pytest.mark.parametrize("algorithm", ["CMA-ES", "turbo", "qlogei", *IN_TENSORS])
def test_the_default_dtype_of_the_caller_changes_no_number(algorithm):
    def make():
        lb, ub = box(3)
        if algorithm == "CMA-ES":
            return CMAES((lb + ub) / 2, 0.3, 6)
        if algorithm in ("turbo", "qlogei"):
            return BayesianOptimization(3, lb, ub, acquisition=algorithm, candidates=50)
        return make_algorithm(algorithm, 6, 3)

    def run():
        torch.manual_seed(2)
        monitor = EvalMonitor(full_sol_history=True)
        workflow = StdWorkflow(make(), Sphere(), monitor)
        workflow.init_step()
        for _ in range(2):
            workflow.step()
        return torch.cat(monitor.get_solution_history())

    expected = run()
    with bfloat16_by_default():
        assert torch.equal(run(), expected)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (ModelSwarms, {"start": "zero"}, "start: expected own or known, found 'zero'"),
        (ModelSwarms, {"repel": -0.1}, "repel: expected a number of at least 0, found -0.1"),
        (ModelSwarms, {"patience": float("nan")}, "patience: expected .* found nan"),
        (
            ModelSwarms,
            {"inertia": 0, "cognitive": 0, "social": 0, "repel": 0},
            "expected a positive number among",
        ),
        (PSOMerging, {"start": None}, "start: expected own or known, found None"),
        (PSOMerging, {"social": "2"}, "social: expected a number of at least 0, found '2'"),
        (
            BayesianOptimization,
            {"acquisition": "ucb"},
            "acquisition: expected thompson, turbo or qlogei, found 'ucb'",
        ),
        (BayesianOptimization, {"start": "one"}, "start: expected own or known, found 'one'"),
        (
            BayesianOptimization,
            {"candidates": 3},
            "candidates: expected .* at least pop_size = 4, found 3",
        ),
    ],
)
def test_settings_out_of_range_are_refused(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(4, *box(2), **settings)
