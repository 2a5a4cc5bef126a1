"""The folder of a run: whose it is, and what it holds beside the history.

A run goes on only as the same run: `config.yaml` holds its settings, and `inputs.json` digests of
what these name. One process at a time has a folder, by the lock of its journal.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

from evox_evogm.command.batch_settings import NAMES as BATCHES
from evox_evogm.command.batch_settings import OPEN as LEFT_OPEN
from evox_evogm.command.chosen_settings import complete
from evox_evogm.command.kept_overrides import OVERRIDES
from evox_evogm.command.relative_paths import path_between
from evox_evogm.command.run_files import CONFIG, INPUTS, REGMEAN, RESULT, has_begun
from evox_evogm.command.settings import RunSettings, parse_settings
from evox_evogm.monitoring.budget import Budget
from evox_evogm.monitoring.progress import ROUNDING, full_evaluations, searched
from evox_evogm.resume.atomic_write import atomic_write
from evox_evogm.resume.journal import Journal, lock_path
from evox_evogm.resume.journaled_problem import RECOMMENDED
from evox_evogm.resume.resumable_search import JOURNAL, saved_seconds

FORMAT = 3  # of the folder
REPORTS = ("report.html", "report.md")
ENDS = ("budget", "stop", "confirm", "confirm_examples")  # how a search ends
# Settings on which no evaluation of the search depends.
CHANGEABLE = (
    *ENDS,
    "trackers",
    "contributions",
    "test_points",
    "adapter_dtype",
    "strict_licences",
)

OPEN_AS_AUTO = ("dtype", "mode", "minibatches")


class RunLock:
    """A run folder that this process has alone.

    :param out: the folder, made if it is missing.
    :raises ValueError: if another process has it, or it holds other files.
    """

    journal: Journal
    """The history, open."""

    def __init__(self, out: Path):
        check_run_folder(out)
        self.out, self.made = out, not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(out / JOURNAL)

    def release(self) -> None:
        """Let another process have the folder, and leave nothing behind where no run has begun."""
        if self.journal.file.closed:
            return
        self.journal.close(remove_empty=not has_begun(self.out))
        if self.made and not any(self.out.iterdir()):
            self.out.rmdir()


def check_run_folder(out: Path) -> None:
    """Refuse a folder that is neither new nor empty, nor of a run.

    :raises ValueError: if it holds other files than those of a run that ended before it began.
    """
    if not out.exists() or has_begun(out):
        return
    if out.is_dir() and all(_precedes_a_run(path) for path in out.iterdir()):
        return
    expected = "expected a new or empty folder or an earlier run"
    found = f"{out} with other files in it" if out.is_dir() else f"the file {out}"
    raise ValueError(f"out: {expected}, found {found}")


def _precedes_a_run(path: Path) -> bool:
    """Whether a file may be there before the settings are: that makes the folder a run."""
    if path.name == JOURNAL:
        return path.is_file() and path.stat().st_size == 0
    lock = lock_path(path.with_name(JOURNAL)).name
    whole = (INPUTS, REGMEAN)
    unfinished = [f"{name}.part" for name in (CONFIG, *whole)]
    return path.name in (*whole, *unfinished, lock)


def write_inputs(
    out: Path,
    settings: RunSettings,
    digests: Mapping[str, str],
    made_with: Mapping,
    notes: Sequence[str] = (),
    folder: Path | None = None,
    commits: Mapping[str, str] | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """Write down what a run is made of, before its first evaluation.

    :param digests: of what the settings name, by name.
    :param made_with: what else may explain a difference, but does not keep a run from going on.
    :param notes: what was found out about the inputs, a line each.
    :param folder: the folder that paths in the settings are relative to.
    :param commits: of the hub, by repository and revision.
    :param overrides: `key=value` words that the command line gave.
    """
    inputs: dict = {"format": FORMAT, "sha256": digests, "made with": made_with}
    inputs["notes"] = list(notes)
    if folder is not None:
        inputs["settings_folder"] = str(folder.resolve())
        inputs["settings_folder_from_here"] = path_between(folder, out)
    if overrides:
        inputs[OVERRIDES] = list(overrides)
    if commits:
        inputs["hub"] = dict(commits)
    atomic_write(out / INPUTS, (json.dumps(inputs, indent=2) + "\n").encode())
    config = yaml.safe_dump(settings.as_table(), sort_keys=False)
    atomic_write(out / CONFIG, config.encode())  # last: it makes the folder a run


def saved_settings(out: Path) -> RunSettings | None:
    """The settings of the run in a folder, or None where there is none yet.

    :raises ValueError: if they are damaged, or of another version.
    """
    if not has_begun(out):
        return None
    saved_digests(out)  # refuses another format
    table = read_table(out / CONFIG, yaml.safe_load)
    try:
        return parse_settings(table, "settings")
    except ValueError as error:
        raise ValueError(damaged(out / CONFIG, error)) from error


def saved_digests(out: Path) -> dict[str, str]:
    """The digests of what the run in a folder is made of.

    :raises ValueError: if they are damaged, or of another version.
    """
    inputs = read_table(out / INPUTS, json.loads)
    digests = inputs.get("sha256")
    if inputs.get("format") != FORMAT or not isinstance(digests, dict):
        found = f"found {inputs.get('format')} in {out / INPUTS}"
        which = "which another version of evox-evogm wrote"
        raise ValueError(f"out: expected a run folder of format {FORMAT}, {found}, {which}")
    return digests


def read_table(path: Path, parse: Callable[[str], object]) -> dict:
    """The table in a file of a run folder.

    :param parse: reads the text of the file.
    :raises ValueError: if the file is missing or damaged.
    """
    try:
        table = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        expected = f"expected {path} beside the history of the run"
        raise ValueError(f"out: {expected}, found none") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(damaged(path, error)) from error
    if not isinstance(table, dict):
        raise ValueError(damaged(path, "not a table"))
    return table


def damaged(path: Path, reason) -> str:
    """The error message of a damaged file."""
    return f"out: expected {path} as evogm wrote it, found it damaged: {reason}"


def check_same_settings(settings: RunSettings, saved: RunSettings, out: Path) -> None:
    """Refuse to go on with other settings.

    `auto` agrees with whatever was chosen, and a mode with a table of nothing else. What
    no step depends on, such as the budget, may be another.

    :param settings: of now.
    :param saved: of the run in the folder.
    :raises ValueError: naming the first setting that differs.
    """
    before = saved.as_table()
    for name, value in settings.as_table().items():
        if name in CHANGEABLE or (name in OPEN_AS_AUTO and value == "auto"):
            continue
        if name in BATCHES and value in LEFT_OPEN:
            continue
        if name == "chat_date" and value is None:
            continue
        if name == "mode" and _is_everywhere(value, before[name]):
            continue
        value = complete(name, value, before[name])
        # The order of experts is that of coefficients, and of two patterns the first counts.
        ordered = name in ("experts", "groups") and not isinstance(value, str)
        same_order = not ordered or list(value) == list(before[name])
        if value != before[name] or not same_order:
            key, now, then = first_difference(name, value, before[name])
            found = f"found {key} {now!r} where it has {then!r}"
            advice = "take another folder, or the same settings"
            raise ValueError(f"out: expected the settings of the run in {out}, {found}; {advice}")


def first_difference(name: str, now, then) -> tuple[str, object, object]:
    """The first key in which a setting differs, and both its values.

    :param name: of the setting.
    :param now: its value; tables in it are looked into, where they have the same keys.
    :param then: that of the run.
    :return: the key as `search.box_growth` and `tasks.0.dev`, and the two values.
    """
    inner: list[tuple[object, object, object]] = []
    if isinstance(now, dict) and isinstance(then, dict) and now.keys() == then.keys():
        inner = [(key, now[key], then[key]) for key in now]
    elif isinstance(now, list) and isinstance(then, list) and len(now) == len(then):
        inner = [(place, *values) for place, values in enumerate(zip(now, then, strict=True))]
    for key, new, old in inner:
        if new != old:
            return first_difference(f"{name}.{key}", new, old)
    return name, now, then


def check_budget(limit: Budget, records: Sequence[dict], out: Path) -> None:
    """Refuse a budget that is smaller than what a run has used.

    :param limit: the budget of now.
    :param records: the history of the run.
    """
    used = full_evaluations(searched(records))
    if (out / RESULT).is_file() and records:  # its recommended merge counts too
        used += full_evaluations(records[-1:]) if RECOMMENDED in records[-1] else 0.0
    if limit.evaluations is not None and limit.evaluations < used - ROUNDING:
        expected = f"expected at least the {used:.4g} evaluations that the run in {out} has made"
        raise ValueError(f"budget: {expected}, found {limit.evaluations}")
    minutes = saved_seconds(out) / 60
    if limit.seconds is not None and limit.seconds < 60 * minutes:
        expected = f"expected at least the {minutes:.1f} min that the run in {out} has taken"
        raise ValueError(f"budget: {expected}, found {limit}")


def check_marked(records: Sequence[dict], out: Path) -> None:
    """Refuse to go on with a finished run whose recommended merge has no mark in its history.

    :param records: those after the last step.
    """
    if (out / RESULT).is_file() and searched(records):
        expected = f"expected a run folder in which a larger budget can go on, found {out}"
        reason = "which another version of evox-evogm finished"
        raise ValueError(f"out: {expected}, {reason}; take another folder")


def change_budget(out: Path, saved: RunSettings, settings: RunSettings) -> None:
    """Have a run go on with another budget, stop or confirm. An earlier result is kept beside.

    :param saved: the settings of the run until now.
    :param settings: those of now.
    """
    if (out / RESULT).is_file():
        words = str(saved.budget).replace(" ", "")
        (out / RESULT).replace(_free_name(out, f"result_{words}"))
        for report in REPORTS:  # they show the earlier result
            (out / report).unlink(missing_ok=True)
    changed = {name: getattr(settings, name) for name in ENDS}
    table = saved.model_copy(update=changed).as_table()
    atomic_write(out / CONFIG, yaml.safe_dump(table, sort_keys=False).encode())


def _free_name(out: Path, stem: str) -> Path:
    """The path of a new JSON file: `result_60.json`, or `result_60-2.json` where that is taken."""
    path, number = out / f"{stem}.json", 2
    while path.exists():
        path, number = out / f"{stem}-{number}.json", number + 1
    return path


def is_newer(path: Path, other: Path) -> bool:
    """Whether a file is there, and was written after another or with it."""
    return path.is_file() and path.stat().st_mtime_ns >= other.stat().st_mtime_ns


def _is_everywhere(mode, modes) -> bool:
    """Whether a table of modes has tasks, and this mode for every one."""
    if not isinstance(modes, dict) or not modes:
        return False
    return all(chosen == mode for chosen in modes.values())


def check_same_inputs(digests: Mapping[str, str], out: Path) -> None:
    """Refuse to go on with another base, other adapters or tasks under the same names.

    :raises ValueError: naming the first input that differs.
    """
    before = saved_digests(out)
    for name in sorted(digests.keys() | before.keys()):
        if digests.get(name) != before.get(name):
            expected = f"expected the inputs of the run in {out}"
            advice = "take another folder, or the same inputs"
            raise ValueError(f"out: {expected}, found {name} changed since; {advice}")
