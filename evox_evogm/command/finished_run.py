"""The end of a merge run: its result, adapter and reports, and what can be made of them again."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from evox_evogm.command.adapter import adapter_fault, export_merge
from evox_evogm.command.harness_check import check_by_harness, notes_of_harness
from evox_evogm.command.history_on_test import score_history
from evox_evogm.command.html_report import write_page
from evox_evogm.command.no_information import (
    describe_flat_tasks,
    explain_no_information,
    flat_tasks,
)
from evox_evogm.command.notes import (
    notes_of_box,
    notes_of_failed_rows,
    notes_of_groups,
    notes_of_level_rows,
)
from evox_evogm.command.objective_report import describe_front, describe_objective
from evox_evogm.command.report_data import (
    add_to_report,
    collect_report_data,
    leave_one_out,
    or_failure,
    wants_contributions,
    write_report_data,
)
from evox_evogm.command.result import (
    describe_merge,
    read_coefficients,
    write_examples,
    write_result,
)
from evox_evogm.command.run_inputs import made_with
from evox_evogm.command.scores import ScoreRow
from evox_evogm.command.sources import sources_of
from evox_evogm.command.stopping_rule import describe_stop
from evox_evogm.command.tasks import RunTasks
from evox_evogm.command.trial_remarks import remarks_on_trial
from evox_evogm.problems.adapters.adapter_dtype import dtype_name, resolve_adapter_dtype
from evox_evogm.problems.inference.quantized_base import quantized_as

if TYPE_CHECKING:
    from evox_evogm.command.merge_run import MergeRun


def finish_run(run: "MergeRun", best: torch.Tensor, rows: Sequence[ScoreRow]) -> dict:
    """Export the best merge, check it with plain peft, and write the result and the reports.

    :param run: whose search is over.
    :param best: `(n g,)` effective coefficients.
    :param rows: of the final table.
    :return: what `result.json` holds.
    """
    problem, settings, out = run.problem, run.settings, run.out
    result = describe_merge(problem, best, rows, run.tasks, run.records)
    result["algorithm"] = settings.algorithm
    result |= describe_objective(settings, problem.objective, rows)
    if settings.objective == "pareto":
        result["front"] = describe_front(problem, run.tasks, run.records, best)
    result["trial"] = run.try_training()
    result["confirm"] = run.confirmed
    result |= judge(run, rows)
    result["adapter"] = export(run, best)
    result["seed"] = settings.seed
    result["budget"] = settings.budget
    result["stopped"] = describe_stop(settings) if run.stopped else None
    if run.stopped:
        result["notes"].append(result["stopped"])
    result["dtype"] = run.dtype
    result["quantization"] = quantized_as(problem.language_model.model)
    result["base"] = settings.base
    result["base_sha256"] = run.digests["base"]
    result["sources"] = sources_of(problem)
    if result["checkpoints"]:
        result["notes"].append(
            f"full checkpoints take part, so there is no adapter: evogm export {out} writes the "
            "merge as a whole model"
        )
    result |= made_with(problem.language_model, run.tasks.dev)
    checked = check_by_harness(problem, run.tasks, rows, result["adapter"], out, best)
    result["lm_eval"] = checked
    result["notes"] += notes_of_harness(checked)
    # The tasks of the problem, in whose order the dev scores are.
    write_examples(rows, RunTasks(problem.tasks, run.tasks.test), out)
    contributions = wants_contributions(settings.contributions, problem.n_experts)
    data = collect_report_data(
        problem, run.tasks, best, rows, contributions=contributions, box=run.box
    )
    count = settings.test_points
    if count:
        data["test_points"] = or_failure(lambda: score_points(run, count))
    write_report_data(data, out)
    write_result(result, out, run.folder)
    write_page(out)
    return result


def judge(run: "MergeRun", rows: Sequence[ScoreRow]) -> dict:
    """What `result.json` says of how much the scores say, and what else a reader has to know.

    :param rows: of the final table.
    """
    merges = [row for row in rows if row.kind != "trained"]
    on_minibatches = run.problem.minibatches > 1
    flat = flat_tasks(merges, run.records, run.tasks, on_minibatches=on_minibatches)
    trial = run.try_training()
    tried = [] if trial is None else remarks_on_trial(trial)
    opened = notes_of_box(run.problem, run.box)
    groups = notes_of_groups(run.algorithm, [record["coefficients"] for record in run.records])
    notes = [*run.notes, *tried, *opened, *groups, *notes_of_failed_rows(rows)]
    if len(flat) < len(run.tasks.dev):
        noted = {found.task.name for found in flat}
        others = [task for task in run.tasks.dev if task.name not in noted]
        notes += describe_flat_tasks(flat) + notes_of_level_rows(merges, others)
        return {"notes": notes, "no_information": None}
    notes += notes_of_level_rows(merges, run.tasks.dev)
    found = explain_no_information(flat, run.problem.language_model)
    return {"notes": notes, "no_information": asdict(found)}


def export(run: "MergeRun", best: torch.Tensor) -> dict | None:
    """Export the best merge, and say what `result.json` says of the adapter."""
    return export_merge(run.problem, best, run.out, run.folder, run.settings.adapter_dtype)


def fault_of_adapter(run: "MergeRun") -> str | None:
    """Why the adapter of a finished run has to be made again, or None."""
    wanted = resolve_adapter_dtype(run.settings.adapter_dtype, run.problem.experts)
    return adapter_fault(run.result(), run.out, dtype_name(wanted))


def export_again(run: "MergeRun") -> dict:
    """Make the adapter of a finished run again, from its coefficients.

    :return: what `result.json` now holds.
    """
    result = run.result()
    best = read_coefficients(result, run.problem)
    result["adapter"] = export(run, best)
    write_result(result, run.out, run.folder)
    write_page(run.out)
    return result


def complete_report(run: "MergeRun") -> bool:
    """Add what the settings now want in the report of a finished run.

    :return: whether something was added.
    """
    added = False
    if wants_contributions(run.settings.contributions, run.problem.n_experts):
        best = read_coefficients(run.result(), run.problem)
        added |= add_to_report(run.out, "contributions", lambda: leave_one_out(run.problem, best))
    count = run.settings.test_points
    if count:
        added |= add_to_report(run.out, "test_points", lambda: score_points(run, count), count)
    return added


def score_points(run: "MergeRun", count: int) -> dict:
    """Test scores of so many merges of the history."""
    records = run.records or run.lock.journal.records  # the latter of a run that was opened again
    return score_history(run.problem, records, run.tasks.test, count, run.out)
