"""The setting `trackers`: which trackers a run tells of its evaluations."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evox_evogm.command.strict_settings import check_names

if TYPE_CHECKING:
    from evox_evogm.command.merge_run import MergeRun
    from evox_evogm.monitoring.trackers import Tracker

NAMES = ("tensorboard", "wandb", "trackio", "mlflow")
OPTIONS = ("project", "name")


def check_trackers(entries: Sequence) -> None:
    """Refuse trackers and options that are not known.

    :param entries: names, or tables of a name and its options.
    :raises ValueError: in one sentence.
    """
    for entry in entries:
        name, options = name_and_options(entry)
        check_names([name], NAMES, "trackers")
        check_names(list(options), OPTIONS, f"trackers: {name}")
        for option, value in options.items():
            if not isinstance(value, str):
                raise ValueError(f"trackers: expected {option} to be a text, found {value!r}")


def name_and_options(entry: Any) -> tuple[str, dict]:
    """The name of a tracker, and its options.

    :raises ValueError: if an entry is neither a name nor a table of one name and its options.
    """
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, dict) and len(entry) == 1:
        ((name, options),) = entry.items()
        if isinstance(name, str) and isinstance(options, dict):
            return name, options
    expected = "expected a name, or a table of a name and its options"
    raise ValueError(f"trackers: {expected}, found {entry!r}")


def make_trackers(entries: Sequence, settings: Any, out: Path) -> "list[Tracker]":
    """The trackers of a run, not begun yet.

    :param entries: as `check_trackers` takes them.
    :param settings: of the run.
    :param out: the run folder.
    :raises ModuleNotFoundError: if a package is missing, with the command that installs it.
    """
    from evox_evogm.monitoring.trackers import TRACKERS

    found = []
    for entry in entries:
        name, options = name_and_options(entry)
        given = {"name": out.resolve().name, **options}
        found.append(TRACKERS[name](folder=out, settings=settings.as_table(), **given))
    return found


def name_coefficients(trackers: "Sequence[Tracker]", run: "MergeRun") -> None:
    """Give trackers the names of the experts and the number of evaluations that there are.

    Both are known when the run is loaded.
    """
    for tracker in trackers:
        tracker.evaluations = len(run.lock.journal.records)
        tracker.experts = [expert.name for expert in run.problem.experts]
        tracker.groups = run.problem.groups.count
        tracker.used = run.problem.scorer.used_coefficients.tolist()


def final_numbers(result: dict) -> dict[str, float]:
    """What trackers are told at the end: mean dev and test scores of every row of the table.

    :param result: what `result.json` holds.
    """
    from evox_evogm.command.scores import label

    numbers = {}
    for row in result["scores"]:
        name = "merge" if row["kind"] == "merge" else label(row["kind"], row["name"])
        for split in ("dev", "test"):
            scores = [float(score) for score in row[split].values()]
            numbers[f"final_{split}/{name}"] = sum(scores) / len(scores)
    return numbers
