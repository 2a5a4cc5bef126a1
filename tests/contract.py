"""Runs and checks of EvoX's contract for algorithms: eager, compiled, vmapped, or both."""

from contextlib import contextmanager

import torch
from evox import compile, use_state, vmap


def run_algorithm(workflow, step, steps=5):
    """Run `init_step` and then `step` several times, and return the algorithm's record.

    Five steps lead a search of two rounds of one iteration beyond its plan.

    :param step: `workflow.step`, or what was compiled from it.
    """
    workflow.init_step()
    for _ in range(steps):
        step()
    return workflow.algorithm.record_step()


def run_eager_and_compiled(make_workflow, seed, steps=5):
    """The records of an eager and of a compiled run, which draw the same random numbers.

    :param make_workflow: a function that makes the workflow, called once per run.
    """
    records = []
    for compiled in (False, True):
        torch.manual_seed(seed)
        workflow = make_workflow()
        step = compile(workflow.step) if compiled else workflow.step
        # Without this option compiled code has random numbers of its own.
        with torch._inductor.config.patch(fallback_random=True):
            records.append(run_algorithm(workflow, step, steps))
    return records


def run_vmap_algorithm(workflow, instances=3, steps=5, compiled=True):
    """The stacked state of several instances of one workflow after `init_step` and some steps."""
    parameters, buffers = torch.func.stack_module_state([workflow] * instances)
    init_step = vmap(use_state(workflow.init_step), randomness="different")
    step = vmap(use_state(workflow.step), randomness="different")
    step = compile(step) if compiled else step
    state = init_step({**parameters, **buffers})
    for _ in range(steps):
        state = step(state)
    return state


def check_record(record, n, pop_size, dtype):
    """Points and fitness have the right shape and dtype, and are finite."""
    points, fitness = record["pop"], record["fit"]
    assert points.shape[-2:] == (pop_size, n)
    assert fitness.shape[-1:] == (pop_size,)
    assert points.dtype == fitness.dtype == dtype
    assert torch.isfinite(points).all()
    assert torch.isfinite(fitness).all()


def check_records_agree(eager, compiled):
    """A compiled run may differ from an eager one by rounding only."""
    assert eager.keys() == compiled.keys()
    for key in eager:
        torch.testing.assert_close(compiled[key], eager[key], rtol=1e-4, atol=1e-5)


@contextmanager
def bfloat16_by_default():
    """Inside the block new tensors are bfloat16 unless something else is said."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


HALF = torch.ones(2, dtype=torch.float16)
INFINITE = torch.tensor([1.0, torch.inf])
HUGE = torch.full((2,), 3e38)
# Boxes that no search can work in, and what is said of them.
BAD_BOXES = [
    ((-HALF, HALF), "lb and ub: expected float32 or float64, found torch.float16"),
    ((-HALF.bfloat16(), HALF.bfloat16()), "found torch.bfloat16, .* give dtype=torch.float32"),
    ((torch.zeros(2), INFINITE), r"expected finite bounds .* found lb .*, ub \[1.0, inf\]"),
    ((-INFINITE, INFINITE), r"expected finite bounds .* found lb \[-1.0, -inf\]"),
    ((-HUGE, HUGE), "expected finite bounds with a finite distance"),
    ((torch.zeros(2), torch.tensor([1.0, torch.nan])), r"expected lb < ub .* ub \[1.0, nan\]"),
]
