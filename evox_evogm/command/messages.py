"""What the command prints: what a run is going to do, what it found, and what is wrong with it."""

import logging
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from evox_evogm.monitoring.counted import counted
from evox_evogm.monitoring.display.heartbeat import Heartbeat
from evox_evogm.monitoring.escaping import printable_lines, sanitize

if TYPE_CHECKING:
    from rich.console import Console

    from evox_evogm.command.merge_run import MergeRun

LONGEST_TEXT = 2000  # characters of a prompt or an output on a terminal; the report has all


def fail(sentence: str) -> None:
    """Print an error as one line without control characters."""
    print(f"evogm: {sanitize(sentence)}", file=sys.stderr)


def print_plan(merge_run: "MergeRun") -> None:
    """Say what a run is going to do, before its first evaluation."""
    problem = merge_run.problem
    examples = sum(len(task.examples) for task in problem.tasks)
    experts = counted(problem.n_given, "expert")
    tasks = f"{counted(len(problem.tasks), 'task')} with {counted(examples, 'dev example')}"
    where = f"on {problem.language_model.device} in {merge_run.dtype}"
    print(f"{experts}, {tasks}, {merge_run.limit.budget} {where}")
    for line in merge_run.limit.words():
        print(line)
    print_notes(merge_run.notes)
    print(f"run folder: {merge_run.out}", flush=True)
    saved = merge_run.saved
    if saved is None:
        return
    if saved.limit == merge_run.settings.limit:
        print("an earlier process began this run; it goes on", flush=True)
    else:
        budgets = f"with {merge_run.settings.limit} in place of {saved.limit}"
        print(f"an earlier process began this run; it goes on {budgets}", flush=True)


def print_trial(merge_run: "MergeRun") -> None:
    """Make the trial that the settings want, and print what it costs and what it has shown."""
    from evox_evogm.command.trial import cost_of_trial
    from evox_evogm.command.trial_remarks import remarks_on_trial

    settings = merge_run.settings.trial_settings
    if settings is None:
        return
    cost = cost_of_trial(merge_run.problem, settings)
    print(f"trial: training and merging, as much as {cost:.0f} evaluations more ...", flush=True)
    with Heartbeat("training and merging"):
        trial = merge_run.try_training()
    if trial is not None:
        print_notes(remarks_on_trial(trial))


def print_confirmation(merge_run: "MergeRun", count: int) -> None:
    """Say what scoring the best merges on further dev examples takes, before it is done.

    :param count: of merges.
    """
    from evox_evogm.command.confirm import cost_of_confirmation

    examples = sum(len(task.examples) for task in merge_run.further)
    cost = cost_of_confirmation(merge_run.further, merge_run.problem.tasks, count)
    merges = "the recommended merge" if count == 1 else f"the best {count} merges"
    on = counted(examples, "further dev example")
    print(f"\nscoring {merges} on {on}, as much as {cost:.3g} evaluations ...", flush=True)


def say_notes_once() -> None:
    """Keep what `print_notes` prints of a problem from being written to stderr as a log too."""
    if logging.lastResort is not None:  # which writes warnings where logging is not set up
        logging.lastResort.addFilter(_is_no_note)


def _is_no_note(record: logging.LogRecord) -> bool:
    return record.name not in _loggers_of_notes()


@cache
def _loggers_of_notes() -> frozenset[str]:
    """The loggers whose warnings are among the notes of a problem."""
    from evox_evogm.problems.adapters import check_fit, odd_experts
    from evox_evogm.problems.images import image_probe
    from evox_evogm.problems.inference import probe

    modules = (check_fit, odd_experts, image_probe, probe)
    return frozenset(module.log.name for module in modules)


def print_notes(notes: Sequence[str]) -> None:
    """Print what was found out about a run, a line each."""
    for note in notes:
        print(f"note: {sanitize(note)}")


def print_result(result: dict, notes: Sequence[str], out: Path, console: "Console") -> None:
    """Print the table of scores, the coefficients, and where the files are.

    :param result: what `result.json` holds.
    :param notes: those of its notes that were not printed yet.
    :param out: the run folder.
    :param console: where the table goes.
    """
    from evox_evogm.command.confirm import remarks_on_confirm
    from evox_evogm.command.objective_remarks import remarks_on_objective
    from evox_evogm.command.score_table import has_errors, print_scores, remarks_on_merge
    from evox_evogm.command.significance import not_beyond_chance, remarks_on_chance

    errors = " ± its standard error" if has_errors(result["scores"]) else ""
    print(f"\nscores, dev (which the search saw) / test (which it did not){errors}")
    print_scores(result["scores"], console)
    remarks = remarks_on_merge(result)
    remarks += remarks_on_confirm(result.get("confirm")) + remarks_on_objective(result)
    for remark in remarks + remarks_on_chance(result):
        print(sanitize(remark))
    print_notes(notes)
    if result["no_information"]:
        print_no_information(result["no_information"])
    coefficients = []
    for name, value in result["coefficients"].items():
        coefficients.append(f"{sanitize(name)} {value:+.3f}")
    what = "mean coefficients" if result["coefficients_by_group"] else "coefficients"
    whose, meaning = "", "1 adds all of an expert"
    if result["regmean"]:
        whose, meaning = " of the regressed experts", "1 for each is the RegMean merge"
    if result["keep_experts"]:
        whose, meaning = "", "1 for each regressed one and 0 for the others is the RegMean merge"
    print(f"\n{what}{whose} ({meaning}): {', '.join(coefficients)}")
    print_adapter(result["adapter"], out)
    print(f"report: {out / 'report.html'} (as text: report.md)")
    for sentence in not_beyond_chance(result):
        print(sanitize(sentence))


def print_adapter(adapter: dict | None, out: Path) -> None:
    """Print where the adapter is, if it can be used.

    :param adapter: what `result.json` says of it.
    """
    if adapter and not adapter["error"]:
        difference = adapter["largest_relative_difference"]
        check = f"loaded again with plain peft: equal to the merge within {difference:.1e}"
        print(f"adapter: {out / adapter['folder']} ({check})")


def print_no_information(found: dict) -> None:
    """Print that a run learned nothing, what usually causes it, and an example to look at.

    :param found: the entries of a `NoInformation`.
    """
    print(f"\n{sanitize(found['sentence'])}. This is usually why:")
    for cause in found["causes"]:
        print(f"- {cause}")
    example, task = sanitize(found["example"]), sanitize(found["task"])
    print(f"\nexample {example} of task {task}, as the base gets it:")
    print_text(found["prompt"])
    print("what the base writes:")
    print_text(found["output"])
    print("what the task expects:")
    print_text(found["expected"])


def print_text(text: str) -> None:
    """Print the end of a text, indented."""
    if len(text) > LONGEST_TEXT:
        text = f"...{text[-LONGEST_TEXT:]}"
    for line in printable_lines(text) or [""]:
        print(f"    {line}")
