"""`MergeMonitor` of a `LoRAMergeProblem`: scores by task, and the journal of the command."""

import pytest
import torch
from builders import build_model
from evox.workflows import StdWorkflow

from evox_evogm import MergeMonitor, ResumableSearch, SurrogateEvoGM
from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.resume.journal import read_blocks

CHOICES = (("A", "yes"), ("B", "no"))


def tasks():
    found = []
    for name in ("even", "odd"):
        examples = []
        for number in range(4):
            prompt, target = f"{name} {number}?", "AB"[number % 2]
            examples.append(Example(str(number), prompt, target, CHOICES))
        found.append(Task(name, "1", "choice_likelihood", tuple(examples)))
    return found


@pytest.fixture
def workflow_of(make_adapter, tokenizer):
    """A function that makes the same problem and workflow around a monitor."""
    folders = [make_adapter(name, seed=seed) for seed, name in enumerate(("first", "second"))]

    def make(monitor_of=lambda problem: None, objectives="outcomes"):
        problem = LoRAMergeProblem(
            build_model(),
            folders,
            tasks(),
            objectives=objectives,
            tokenizer=tokenizer,
            mode="unmerged",
        )
        outcomes = problem.outcomes if objectives == "outcomes" else None
        torch.manual_seed(0)
        algorithm = SurrogateEvoGM(2, *problem.box, outcomes=outcomes)
        return StdWorkflow(algorithm, problem, monitor_of(problem), opt_direction="max")

    return make


def run(workflow, steps=3):
    workflow.init_step()
    for _ in range(steps - 1):
        workflow.step()
    return workflow.monitor


@pytest.mark.parametrize("objectives", ["outcomes", "mean"])
def test_scores_by_task_are_those_that_the_problem_gives(workflow_of, objectives):
    workflow = workflow_of(
        lambda problem: MergeMonitor(problem=problem, full_sol_history=True), objectives
    )
    monitor = run(workflow)
    history = monitor.get_task_history()
    assert list(history) == ["even", "odd"]
    assert [len(scores) for scores in history["odd"]] == [2, 2, 2]
    fitness = torch.cat(monitor.get_fitness_history())
    by_task = torch.stack([torch.cat(history[name]) for name in history])
    torch.testing.assert_close(by_task.mean(0), fitness)
    last = monitor.get_solution_history()[-1][-1]
    for name, scores in workflow.problem.score_tasks(last).items():
        assert float(history[name][-1][-1]) == pytest.approx(float(scores.mean()))
    assert monitor.get_best_fitness() == fitness.max()


def lines_of(folder):
    records = []
    for block in read_blocks(folder / "history.jsonl"):
        for record in block.records:
            records.append({name: record[name] for name in record if name != "seconds"})
    return records


def test_the_journal_and_the_display_have_what_the_command_has(workflow_of, tmp_path):
    told = []
    monitor = run(
        workflow_of(
            lambda problem: MergeMonitor(
                problem=problem, journal=tmp_path / "ours", callbacks=[told.append]
            )
        )
    )
    monitor.close()
    with ResumableSearch(workflow_of(), tmp_path / "theirs") as search:
        search.run(3)
    ours = lines_of(tmp_path / "ours")
    assert ours == lines_of(tmp_path / "theirs")
    assert len(ours) == 6 and set(ours[0]["examples"]) == {"even", "odd"}
    assert told[-1].best_record["tasks"].keys() == {"even", "odd"}
    assert told[-1].best == pytest.approx(float(monitor.get_best_fitness()))
    assert "examples" not in told[-1].record
