"""What `evogm merge` does: read settings, search, score, export, and print the result."""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from evox_evogm.command.check_run import minutes, table_seconds
from evox_evogm.command.experts import regressed_on
from evox_evogm.command.finished_run import complete_report, export_again, fault_of_adapter
from evox_evogm.command.html_report.page import REPORT, write_page
from evox_evogm.command.kept_overrides import all_words, kept_overrides, with_kept
from evox_evogm.command.merge_run import MergeRun
from evox_evogm.command.messages import (
    fail,
    print_adapter,
    print_confirmation,
    print_no_information,
    print_plan,
    print_result,
    print_trial,
    say_notes_once,
)
from evox_evogm.command.printing import plain_console, printing, silence_transformers
from evox_evogm.command.run_folder import RESULT, is_newer
from evox_evogm.command.search_algorithm import cost_of_point
from evox_evogm.command.settings_file import read_settings
from evox_evogm.command.statuses import NO_ADAPTER, NO_INFORMATION
from evox_evogm.command.torchrun import help_run, helped, ranks_of_torchrun
from evox_evogm.command.tracker_settings import final_numbers, make_trackers, name_coefficients
from evox_evogm.monitoring.callbacks import Callbacks
from evox_evogm.monitoring.display.choose import show_progress
from evox_evogm.monitoring.display.facts import RunFacts
from evox_evogm.monitoring.display.heartbeat import Heartbeat
from evox_evogm.monitoring.display.lines import JsonLines
from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.monitoring.progress import Progress
from evox_evogm.monitoring.trackers import Tracker
from evox_evogm.problems.rank_group import RankGroup


def run(
    settings_path: Path,
    words: Sequence[str],
    out: Path,
    options: dict,
    *,
    quiet: bool = False,
    json_lines: bool = False,
    ranks: RankGroup | None = None,
) -> int:
    """Read the settings, search, score, export, and print the table.

    :param settings_path: the settings file.
    :param words: `key=value` words that replace its settings.
    :param out: the run folder.
    :param options: settings that replace the file's, where they are not None.
    :param quiet: print errors only.
    :param json_lines: write a JSON line per evaluation to stdout, and all else to stderr.
    :param ranks: the processes that share the run. Defaults to those of torchrun.
    :return: the exit status of a run that is finished.
    """
    if ranks is None:
        ranks = ranks_of_torchrun()
    display = JsonLines(sys.stdout) if json_lines else None
    with printing(quiet=quiet, to_stderr=json_lines):
        silence_transformers()
        say_notes_once()
        words, added = with_kept(all_words(words, options), kept_overrides(out))
        settings, folder = read_settings(settings_path, words)
        if added:
            print(sanitize(f"as this run was begun: {' '.join(added)}"))
        regressing = ""
        if settings.regmean:
            regressing = f" and regressing the experts on {regressed_on(settings.regmean)}"
        if ranks.rank > 0:
            with printing(quiet=True, to_stderr=False):
                help_run(folder, words, ranks)
            return 0
        base = sanitize(settings.base)
        trackers = make_trackers(settings.trackers, settings, out)
        print(f"reading the base model {base}, experts and tasks{regressing} ...", flush=True)
        with Heartbeat(f"reading{regressing}"):
            merge_run = MergeRun(settings, folder, out, words)
        with merge_run, helped(merge_run, ranks):
            if merge_run.finished:
                result = reopen(merge_run)
            else:
                console = plain_console()
                if display is None:
                    shown = show_progress(console, facts_of(merge_run), quiet=quiet)
                else:
                    shown = display
                name_coefficients(trackers, merge_run)
                result = finish(merge_run, console, shown, trackers)
    return status_of_result(result)


def facts_of(merge_run: MergeRun) -> RunFacts:
    """What a display shows of a run from its beginning."""
    problem = merge_run.problem
    names = [expert.name for expert in problem.experts]
    used = problem.scorer.used_coefficients.tolist()
    return RunFacts(names, problem.groups.count, merge_run.notes, used)


def finish(
    merge_run: MergeRun, console: Console, display, trackers: Sequence[Tracker] = ()
) -> dict:
    """Make what is left of a run, and print its result.

    :param display: shows the progress of the search.
    :param trackers: are told of it too, and of the scores in the end.
    :return: what `result.json` holds.
    """
    with Callbacks(trackers) as tracked:
        result = _finish(merge_run, console, display, tracked)
        if trackers:
            tracked.log_numbers(final_numbers(result))
    return result


def _finish(merge_run: MergeRun, console: Console, display, tracked: Callbacks) -> dict:
    print_plan(merge_run)
    print_trial(merge_run)
    with display as show:

        def on_progress(progress: Progress) -> None:
            show(progress)
            tracked(progress)

        best = merge_run.search(on_progress)
    if merge_run.settings.confirm:
        candidates = merge_run.to_confirm(best)
        print_confirmation(merge_run, len(candidates))
        best = merge_run.confirm(candidates)
    print_table_time(merge_run)
    with Heartbeat("scoring"):
        rows = merge_run.score_rows(best)
    noted = len(merge_run.notes)
    with Heartbeat("writing adapter and reports"):
        result = merge_run.finish(best, rows)
    print_result(result, result["notes"][noted:], merge_run.out, console)
    further = "stop=null" if result["stopped"] else "a larger --budget"
    print(f"next: {further} goes on from here, or evogm export {merge_run.out}")
    return result


def print_table_time(merge_run: MergeRun) -> None:
    """Say that the models of the final table are scored, and how long that may take."""
    known = [record["seconds"] for record in merge_run.records]
    cost = cost_of_point(merge_run.settings)  # gradients take longer than scores
    seconds = statistics.median(known) / cost if known else 0.0
    time = f", {minutes(table_seconds(merge_run, seconds))}" if seconds else ""
    print(f"\nscoring the base, the experts and the merge on test examples{time} ...", flush=True)


def reopen(merge_run: MergeRun) -> dict:
    """Say that a run is finished, and make its adapter again if something is wrong with it.

    :return: what `result.json` holds.
    """
    result = merge_run.result()
    if complete_report(merge_run) or not is_newer(merge_run.out / REPORT, merge_run.out / RESULT):
        write_page(merge_run.out)  # it is of an earlier version, or its process was killed
    print(f"this run is finished: {merge_run.out / REPORT}")
    if merge_run.saved is not None and merge_run.settings.limit != merge_run.saved.limit:
        reason = f"{merge_run.settings.limit} leave no room for another step"
        print(result["stopped"] or reason)
    fault = fault_of_adapter(merge_run)
    if fault is not None:
        fail(f"adapter: {fault}; making it again from the coefficients")
        result = export_again(merge_run)
        print_adapter(result["adapter"], merge_run.out)
    if result["no_information"]:
        print_no_information(result["no_information"])
    return result


def status_of_result(result: dict) -> int:
    """The exit status of a finished run. Says what is wrong with its result, if anything.

    :param result: what `result.json` holds.
    """
    adapter = result["adapter"]
    if adapter and adapter["error"]:
        advice = "scores and report are written, and the same command makes the adapter again"
        fail(f"adapter: {adapter['error']}; {advice}")
        return NO_ADAPTER
    if result["no_information"]:
        fail(result["no_information"]["sentence"])
        return NO_INFORMATION
    return 0
