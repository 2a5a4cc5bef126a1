"""What `evogm init` does: look at adapters, and write a commented settings file for them."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evox_evogm.command.describe_settings import as_yaml
from evox_evogm.command.init_images import (
    check_heads,
    image_settings,
    note_of_processor,
    of_images,
    parse_images,
)
from evox_evogm.command.init_tasks import (
    example_task,
    given_task,
    suggested_tasks,
    write_examples,
)
from evox_evogm.command.licences import LicenceReport, Part, find_conflicts, part_of
from evox_evogm.command.look_at_adapters import LookedAt, base_of, look_at
from evox_evogm.command.named_adapters import base_of_words
from evox_evogm.command.relative_paths import path_from
from evox_evogm.command.settings import parse_settings
from evox_evogm.command.settings_file import read_table
from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.problems.checkpoints.checkpoint_files import is_checkpoint
from evox_evogm.problems.checkpoints.find_checkpoints import compare_files
from evox_evogm.problems.inference.base_model import SMOLLM2, cache_folder
from evox_evogm.problems.inference.base_not_found import why_not_found
from evox_evogm.resume.atomic_write import atomic_write

BUDGET = 60


def init(words: Sequence[str], out: Path, base: str | None, tasks: Sequence[str]) -> None:
    """Look at adapters, write a settings file, and say what comes next.

    :param words: adapters, see `named_adapters`.
    :param out: the settings file.
    :param base: the base model; by default what the adapters name.
    :param tasks: as `given_task` or `parse_images` takes them; by default what the adapters
        suggest, or examples.
    :raises ValueError: if there are no adapters, or they do not belong together.
    """
    adapters = look_at(words)
    found_base, why = _choose_base(words, adapters, base)
    fault = licence_fault(adapters, found_base)
    if fault is not None:
        print(f"note: licences: {fault}")
    images = of_images(found_base, tasks)
    check_heads(adapters, images)
    folder = out.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    given = _given_tasks(tasks, images, adapters, folder)
    no_processor = note_of_processor(found_base) if images else None
    if no_processor is not None:
        print(f"note: {sanitize(no_processor)}")
    entries = [entry for entry, _ in given]
    suggested = [] if entries else suggested_tasks(adapters)
    examples = not entries and not suggested
    if examples:
        files = " and ".join(str(path) for path in write_examples(folder))
    local = Path(found_base)  # relative to this process; in the file, to the file
    all_adapters = all(adapter.checkpoint is None for adapter in adapters)
    knows_its_tasks = _each_has_a_task(adapters, entries or suggested)
    values = {
        "base": path_from(local, folder) if local.is_dir() else found_base,
        "why_base": sanitize(why),
        "adapters": [_as_template(adapter, folder) for adapter in adapters],
        "licence_fault": fault,
        "tasks": given or [(entry, None) for entry in suggested or [example_task()]],
        "images": images,
        "no_processor": no_processor and sanitize(no_processor),
        "examples": examples,
        "suggested": bool(suggested),
        "unused_data": [] if images else _unused_data(adapters),
        "budget": BUDGET,
        "regmean": knows_its_tasks and all_adapters and not images,
        "file": sanitize(out.name),
    }
    atomic_write(out, _render(values).encode())
    parse_settings(read_table(out), str(out))  # what is written is what can be read
    print(f"settings: {out}")
    if examples:
        print(f"its task is an example: put your own questions into {files}")
    elif suggested:
        print("its tasks are those that the adapters are named after: put yours beside them")
    print(f"next: evogm check {out}")


def _choose_base(
    words: Sequence[str], adapters: Sequence[LookedAt], given: str | None
) -> tuple[str, str]:
    """Say what the adapters are, and which base is taken.

    :param words: that name the adapters.
    :param given: the base that the user named, if one was.
    :return: the base, and why it is that one.
    """
    for adapter in adapters:
        print(f"{sanitize(adapter.name)}: {adapter.words}")
    beside = base_of_words(words) if given is None else None
    base, why = base_of(adapters, given, beside)
    print(f"base: {sanitize(base)} ({sanitize(why)})")
    missing = note_of_missing_base(base, given=given is not None)
    if missing is not None:
        print(f"note: {sanitize(missing)}")
    for line in compare_checkpoints(adapters, base):
        print(line)
    return base, why


def note_of_missing_base(base: str, *, given: bool) -> str | None:
    """A sentence if a base cannot be found from this machine; else None.

    :param given: whether the user named the base, and not an adapter.
    :raises ValueError: if the user named it and it is nowhere.
    """
    not_found = why_not_found(base)
    if not_found is None:
        return None
    if given and not_found.is_certain:
        raise ValueError(not_found.sentence(base))
    return not_found.sentence(base) + ("" if given else "; --base names another one")


def _given_tasks(
    words: Sequence[str], images: bool, adapters: Sequence[LookedAt], folder: Path
) -> list[tuple[dict, str | None]]:
    """The settings of the tasks that a user names, each with what is said of it.

    :param images: whether they are tasks of images.
    :param folder: the folder that paths are to be relative to.
    """
    tasks: list[tuple[dict, str | None]] = []
    for word in words:
        if not images:
            tasks.append((given_task(word, folder), None))
            continue
        named = parse_images(word)
        entry, described = image_settings(named, adapters, folder)
        print(f"task: {sanitize(named.name)}: {described}")
        tasks.append((entry, described))
    return tasks


def compare_checkpoints(adapters: Sequence[LookedAt], base: str) -> list[str]:
    """How each whole model differs from the base, in a line, where the base is on this machine."""
    folder = cache_folder() / SMOLLM2 if base == SMOLLM2 else Path(base)
    if not is_checkpoint(folder):
        return []
    lines = []
    for adapter in adapters:
        if adapter.checkpoint is not None:
            words = compare_files(adapter.folder, folder).words()
            lines.append(f"{sanitize(adapter.name)}: {words}")
    return lines


def licence_fault(adapters: Sequence[LookedAt], base: str) -> str | None:
    """What stands against giving a merge of these on, or None."""
    parts = [part_of("the base", base)]
    parts += [Part(adapter.name, adapter.licence) for adapter in adapters]
    return LicenceReport(tuple(parts), find_conflicts(parts)).sentence()


def _as_template(adapter: LookedAt, folder: Path) -> dict[str, str]:
    path = adapter.hub or path_from(adapter.folder, folder)
    return {"name": adapter.name, "path": path, "words": adapter.words}


def _each_has_a_task(adapters: Sequence[LookedAt], tasks: Sequence[dict]) -> bool:
    """Whether every adapter has the name of a task: it was probably made for it."""
    names = {task.get("name", task.get("reasoning_gym")) for task in tasks}
    return all(adapter.name in names for adapter in adapters)


def _unused_data(adapters: Sequence[LookedAt]) -> list[tuple[str, str]]:
    """What cards name as training data: an adapter and a data set each."""
    found: dict[str, str] = {}
    for adapter in adapters:
        for data in adapter.data:
            found.setdefault(data, sanitize(adapter.name))
    return [(name, data) for data, name in found.items()]


def _render(values: dict) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["yaml"] = as_yaml
    return environment.get_template("settings.yaml.j2").render(values)
