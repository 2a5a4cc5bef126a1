"""What is wrong with settings, as far as it can be seen without torch: within a second or two.

Everything is checked again, and more of it, when base, experts and tasks are read.
"""

import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from evox_evogm.command.relative_paths import place_of, with_home
from evox_evogm.command.settings import RunSettings
from evox_evogm.command.strict_settings import near_name
from evox_evogm.command.task_settings import TaskSettings, check_metric_fits
from evox_evogm.near_path import near_path

ADAPTER = "adapter_config.json and adapter_model.safetensors"
HUB_ID = re.compile(r"(hf://)?\w[\w.-]*/.+")  # what may be one: it needs an owner and a name
FILES_OF = {
    "json_lines": ("json_lines", "test_file"),
    "swarm_eval": ("swarm_eval",),
    "images": ("images", "test_images"),
}
OR_FOLDER = {"images"}  # whose files may be folders


def check_early(settings: RunSettings, folder: Path) -> None:
    """Refuse settings that name a folder or a file that is not there, or an unknown data set.

    :param folder: the folder that paths in the settings are relative to.
    :raises ValueError: in one sentence.
    """
    check_base(settings.base, folder)
    check_experts(settings.experts, folder)
    if settings.chat_template_file is not None:
        template = place_of(settings.chat_template_file, folder)
        if not template.exists():
            raise ValueError(
                "chat_template_file: expected a file with a chat template, or a folder with one, "
                f"found none at {template}{near_path(template)}"
            )
    for entry in settings.tasks:
        check_task(entry, folder)


def check_base(base: str, folder: Path) -> None:
    """Refuse a base that is certainly a path, and is not there.

    A single word may be a model of the hub or of a package. Paths may start from the folder of the
    process too.

    :param base: the setting.
    """
    base = with_home(base)
    path = folder / base
    written = "/" in base and HUB_ID.fullmatch(base) is None
    if written and not Path(base).exists() and is_missing_path(base, folder):
        found = f"found no such folder at {path}{near_path(path)}"
        raise ValueError(f"base: expected a transformers folder or hub id, {found}")


def check_experts(experts: str | list | dict, folder: Path) -> None:
    """Refuse experts that are certainly paths, and are not there.

    :param experts: the setting.
    """
    if isinstance(experts, str):
        parent = place_of(experts, folder)
        if is_missing_path(experts, folder):
            found = f"found no such folder{near_path(parent)}"
            raise ValueError(
                f"experts: expected adapter folders with adapter_config.json in {parent}, {found}"
            )
        return
    if isinstance(experts, dict):
        named = experts
    else:
        named = {Path(str(path)).name: path for path in experts}
        if len(named) < len(experts):  # which is said first, when they are read
            return
    for name, path in named.items():
        check_adapter(str(path), str(name), folder)


def check_adapter(word: str, name: str, folder: Path = Path()) -> None:
    """Refuse an adapter that is certainly a path, and is not there.

    :param name: of the expert.
    """
    if is_missing_path(word, folder):
        path = place_of(word, folder)
        found = f"found no such folder{near_path(path)}"
        raise ValueError(f"expert {name!r} ({path}): expected a folder with {ADAPTER}, {found}")


def is_missing_path(word: str, folder: Path) -> bool:
    """Whether nothing is at a path that cannot be a hub id."""
    if place_of(word, folder).exists():
        return False
    return HUB_ID.fullmatch(word) is None or (folder / word.partition("/")[0]).is_dir()


def check_task(entry: TaskSettings, folder: Path) -> None:
    """Refuse a task whose file is not there, or whose data set reasoning-gym does not have."""
    for setting in FILES_OF.get(entry.reader, ()):
        path = place_of(str(getattr(entry, setting)), folder)
        may_be_folder = entry.reader in OR_FOLDER
        if path.is_file() or (may_be_folder and path.exists()):
            continue
        name = entry.name or (entry.source if may_be_folder else Path(entry.source).stem)
        allowed = "a file or a folder" if may_be_folder else "a file"
        found = f"found none at {path}{near_path(path)}"
        raise ValueError(f"task {name!r}: expected {allowed}, {found}")
    if entry.head is not None and is_missing_path(entry.head, folder):
        place = place_of(entry.head, folder)
        found = f"found none at {place}{near_path(place)}"
        where = f"task {entry.name or entry.source!r}"
        raise ValueError(f"{where}: head: expected a file, a folder or a hub id, {found}")
    check_fits_examples(entry, folder)
    if entry.reader == "reasoning_gym":
        check_data_set(entry.source, f"reasoning-gym task {entry.source!r}")


def check_data_set(name: str, where: str) -> None:
    """Refuse a name that reasoning-gym, where it is installed, does not know.

    :param where: begins the error message.
    :raises ValueError: with the nearest name.
    """
    known = data_sets_of_reasoning_gym()
    if known and name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{where}: expected a data set of reasoning-gym, found {name!r}{hint}")


def check_harness_task(name: str, where: str) -> None:
    """Refuse a name that the LM Evaluation Harness, where it is installed, does not know.

    :param where: begins the error message.
    :raises ValueError: with the nearest name.
    """
    known = tasks_of_harness()
    if known and name not in known:
        expected = f"expected a task of the harness, found {name!r}"
        raise ValueError(f"{where}: {expected}{near_name(name, known)}")


def tasks_of_harness() -> Sequence[str]:
    """The names of its tasks, groups and tags; none where it is not installed. Takes seconds."""
    if find_spec("lm_eval") is None:
        return ()
    from lm_eval.tasks import TaskManager

    return TaskManager().all_tasks


def check_fits_examples(entry: TaskSettings, folder: Path) -> None:
    """Refuse a metric that needs choices where the first example has none, or the other way round.

    :raises ValueError: in one sentence.
    """
    if entry.metric is None or entry.reader not in ("json_lines", "swarm_eval"):
        return
    found = first_has_choices(place_of(entry.source, folder), lines=entry.reader == "json_lines")
    if found is not None:
        check_metric_fits(entry, with_choices=found)


def first_has_choices(file: Path, *, lines: bool) -> bool | None:
    """Whether the first dev example has choices; None where that cannot be read.

    :param lines: whether the file has an example a line, or the lists dev and test.
    """
    try:
        with open(file, encoding="utf-8") as text:
            if lines:
                first = json.loads(next(line for line in text if line.strip()))
            else:
                first = json.load(text)["dev"][0]
    except (OSError, ValueError, LookupError, TypeError, StopIteration, RecursionError):
        return None  # what is wrong with it is said when the task is read
    return bool(first.get("choices")) if isinstance(first, dict) else None


def data_sets_of_reasoning_gym() -> Sequence[str]:
    """The names of its data sets; none where it is not installed."""
    if find_spec("reasoning_gym") is None:
        return ()
    from reasoning_gym.factory import DATASETS

    return list(DATASETS)
