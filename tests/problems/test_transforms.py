"""Merges are no part of torch's transforms: a search inside vmap is refused in a sentence."""

import pytest
import torch
from builders import build_model, two_adapters
from evox.problems.hpo_wrapper import HPOFitnessMonitor, HPOProblemWrapper
from evox.workflows import StdWorkflow

from evox_evogm import EvoGM
from evox_evogm.problems import Example, LoRAMergeProblem, Task

TASK = Task("t", "1", "gold_log_probability", (Example("0", "two", "four"),))
REFUSAL = "^pop: expected one population, found a tensor inside torch.vmap .* one after the other$"


@pytest.fixture
def problem(make_adapter, tokenizer):
    folders = two_adapters("llama", make_adapter)
    return LoRAMergeProblem(build_model(), folders, [TASK], tokenizer=tokenizer, mode="unmerged")


@pytest.mark.parametrize("repeats", [1, 2])
def test_tuning_by_evox_of_a_search_of_merges_is_refused(problem, repeats):
    bounds = torch.ones(2)
    algorithm = EvoGM(4, -bounds, bounds, n_iters=1, epochs=2, hidden_dims=(4,))
    search = StdWorkflow(algorithm, problem, HPOFitnessMonitor(), opt_direction="max")
    tuning = HPOProblemWrapper(
        iterations=3, num_instances=2, workflow=search, num_repeats=repeats, copy_init_state=True
    )
    with pytest.raises(ValueError, match=REFUSAL):
        tuning.evaluate(tuning.get_init_params())


def test_evaluations_inside_a_transform_are_refused(problem):
    with pytest.raises(ValueError, match=REFUSAL):
        torch.vmap(problem.evaluate)(torch.ones(3, 2, 2))
    with pytest.raises(ValueError, match=REFUSAL):
        torch.vmap(lambda point: problem.score_tasks(point)["t"])(torch.ones(3, 2))
    with pytest.raises(ValueError, match=REFUSAL):
        torch.func.grad(lambda point: problem.evaluate(point[None])[0])(torch.ones(2))
    assert problem.evaluate(torch.ones(1, 2)).isfinite().all()
