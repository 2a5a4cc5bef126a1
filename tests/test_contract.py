"""What EvoX asks of every algorithm: steps run eagerly, compiled, and vmapped and compiled; its state is in tensors."""

import pytest
import torch
from evox import compile, use_state, vmap
from evox.problems.numerical import Ackley
from evox.workflows import EvalMonitor, StdWorkflow

from evox_evogm import EvoGM

SETTINGS = {"n_rounds": 2, "n_iters": 1, "epochs": 3, "hidden_dims": (8,)}


def make_workflow(n=3, pop_size=5, dtype=torch.float32, **changes):
    bounds = torch.full((n,), 4.0, dtype=dtype)
    return StdWorkflow(
        EvoGM(pop_size, -bounds, bounds, **{**SETTINGS, **changes}), Ackley(), EvalMonitor(full_fit_history=False)
    )


def run(workflow, step, steps=5):
    workflow.init_step()
    for _ in range(steps):
        step()
    return workflow.algorithm.record_step()


@pytest.mark.parametrize("n", [1, 2, 64])
@pytest.mark.parametrize("pop_size", [2, 7, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_run_eagerly_for_every_shape(n, pop_size, dtype):
    workflow = make_workflow(n, pop_size, dtype)
    record = run(workflow, workflow.step)
    assert record["pop"].shape == (pop_size, n) and record["fit"].shape == (pop_size,)
    assert record["pop"].dtype == record["fit"].dtype == dtype
    assert torch.isfinite(record["fit"]).all()
    assert all(isinstance(value, torch.Tensor) for value in record.values())


def test_steps_run_compiled_across_a_round_boundary():
    workflow = make_workflow()
    record = run(workflow, compile(workflow.step))
    assert int(record["round"]) == 1 and torch.isfinite(record["fit"]).all()


def test_steps_run_vmapped_and_compiled_and_differ_between_runs():
    workflow = make_workflow()
    state = dict(zip(("parameters", "buffers"), torch.func.stack_module_state([workflow] * 3), strict=True))
    state = {**state["parameters"], **state["buffers"]}
    state = vmap(use_state(workflow.init_step), randomness="different")(state)
    step = compile(vmap(use_state(workflow.step), randomness="different"))
    for _ in range(5):
        state = step(state)
    fitness = state["algorithm.fitness"][:, :5]
    assert torch.isfinite(fitness).all() and len(fitness.unique(dim=0)) == 3


def test_a_state_taken_in_the_middle_of_a_run_goes_on_to_the_same_points():
    torch.manual_seed(0)
    workflow = make_workflow()
    workflow.init_step()
    workflow.step()
    state = {name: value.clone() for name, value in workflow.algorithm.state_dict().items()}
    random_state = torch.get_rng_state()
    for _ in range(3):
        workflow.step()
    resumed = make_workflow()
    resumed.algorithm.load_state_dict(state)
    torch.set_rng_state(random_state)
    for _ in range(3):
        resumed.step()
    for name, value in workflow.algorithm.state_dict().items():
        assert torch.equal(value, resumed.algorithm.state_dict()[name]), name
