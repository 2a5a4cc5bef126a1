"""Results of the published EvoGM, in the layout that its code writes."""

import json

import pytest
import torch

from evox_evogm.command.exports import export_adapter, read_published

FINAL = {"second": -1.25, "first": 0.5}  # in another order than the problem's
SOLUTION = {
    "task": "multi_task",
    "initial_coefficients": {"second": 1.0, "first": 0.0},
    "final_coefficients": FINAL,
    "initial_dev_fitness": 0.41,
    "final_dev_fitness": 0.45,
    "final_test_scores": {"mmlu": 0.4},
    "n_rounds": 2,
    "max_iter": 3,
    "total_evaluations": 160,
    "timestamp": "2026-01-01_00-00-00",
}
SOLUTIONS = {
    "initial": {"coefficients": SOLUTION["initial_coefficients"], "dev_score": 0.41},
    "final": {"coefficients": FINAL, "dev_score": 0.45},
    "test_result": {"coefficients": FINAL, "test_score": 0.4},
}
CONTEXT = {"n_experts": 2, "model_names": ["second", "first"], "n_rounds": 2, "top_k": 2}


def write(folder, name, table):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(table))
    return folder / name


@pytest.mark.parametrize(
    ("name", "table"), [("best_solution.json", SOLUTION), ("best_solutions.json", SOLUTIONS)]
)
def test_the_final_coefficients_are_read_in_the_order_of_the_experts(
    problem, tmp_path, name, table
):
    run = tmp_path / "outputs" / "search_process" / "multi_task_2026"
    file = write(run, name, table)
    write(run, "run_context.json", CONTEXT)
    for path in (file, run, tmp_path / "outputs"):
        assert read_published(path, problem).tolist() == [0.5, -1.25]


def test_they_give_an_adapter(problem, tmp_path):
    file = write(tmp_path, "best_solution.json", SOLUTION)
    exported = export_adapter(problem, read_published(file, problem), tmp_path / "adapter")
    assert exported.relative_error < 1e-6
    assert "| first | +0.5000 |" in (tmp_path / "adapter" / "README.md").read_text()


def test_each_group_of_modules_gets_the_coefficient_of_its_expert(shared, tmp_path):
    from copy import copy

    from evox_evogm.problems.adapters.groups import group_modules
    from evox_evogm.problems.checkpoints.full_checkpoint import ranks_of_modules

    grouped = copy(shared.problem)
    grouped.groups = group_modules(ranks_of_modules(grouped.experts), "layer")
    file = write(tmp_path, "best_solution.json", SOLUTION)
    assert read_published(file, grouped).tolist() == [0.5, 0.5, -1.25, -1.25]


def without(table, key):
    return {name: value for name, value in table.items() if name != key}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([], "expected final_coefficients, a table of experts and numbers"),
        ({"final_coefficients": {}}, "expected final_coefficients"),
        ({"best": FINAL}, "expected final_coefficients"),
        ({"final_coefficients": {"first": "x", "second": 1}}, "a finite number for 'first'"),
        ({"final_coefficients": {"first": True, "second": 1}}, "a finite number for 'first'"),
        ({"final_coefficients": {"first": float("nan"), "second": 1}}, "found nan"),
        ({"final_coefficients": {"first": 1.0}}, "found no coefficient of second"),
        (
            {"final_coefficients": {**FINAL, "tulu_cot": 1.0}},
            "found coefficients of tulu_cot, which are no experts here",
        ),
    ],
)
def test_what_is_no_such_result_is_refused(problem, tmp_path, table, words):
    file = write(tmp_path, "best_solution.json", table)
    with pytest.raises(ValueError, match=words):
        read_published(file, problem)


def test_a_damaged_file_a_missing_one_and_several_are_refused(problem, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "best_solution.json").write_text("{")
    with pytest.raises(ValueError, match="expected JSON, found"):
        read_published(tmp_path / "a", problem)
    with pytest.raises(ValueError, match="expected best_solution.json of the published EvoGM"):
        read_published(tmp_path / "nothing", problem)
    write(tmp_path / "b", "best_solution.json", SOLUTION)
    with pytest.raises(ValueError, match="expected one best_solution.json in .*, found 2"):
        read_published(tmp_path, problem)


def test_coefficients_over_experts_that_were_not_kept_are_refused(problem, tmp_path):
    """With another top_k, the published code makes new experts and forgets of what."""
    file = write(tmp_path, "best_solution.json", SOLUTION)
    write(tmp_path, "run_context.json", {**CONTEXT, "top_k": 1})
    with pytest.raises(ValueError, match="expected top_k 2, the number of experts, found 1"):
        read_published(file, problem)
    write(tmp_path, "run_context.json", {**CONTEXT, "top_k": 1, "n_rounds": 1})
    assert torch.equal(read_published(file, problem), torch.tensor([0.5, -1.25]))
