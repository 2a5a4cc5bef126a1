"""The tasks of a new settings file: as the user gives them, or as the adapters suggest them."""

import json
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from evox_evogm.command.early_checks import (
    check_data_set,
    check_harness_task,
    data_sets_of_reasoning_gym,
)
from evox_evogm.command.init_images import FORMS, names_images, parse_images
from evox_evogm.command.relative_paths import path_from
from evox_evogm.near_path import near_path

if TYPE_CHECKING:
    from evox_evogm.command.look_at_adapters import LookedAt

DEV, TEST = 8, 40  # procedural examples
EXAMPLES = {"dev": "example_dev.jsonl", "test": "example_test.jsonl"}
READERS = ("reasoning_gym", "lm_eval")
# Questions that stand in for those of the user: the sum of two numbers, with a wrong one beside.
SUMS = {"dev": range(2, 10), "test": range(10, 30)}


def check_task_word(word: str) -> None:
    """Refuse a task that a user names and that cannot be read, as far as is seen without torch.

    :raises ValueError: if it is none, or a file is missing.
    """
    if names_images(word):
        parse_images(word)
        return
    task = given_task(word, Path.cwd())
    if "lm_eval" in task:
        check_harness_task(task["lm_eval"], "task")


def given_task(word: str, folder: Path) -> dict:
    """The settings of a task of texts that a user names.

    :param word: a JSON file with dev and test, JSON lines as DEV.jsonl,TEST.jsonl, or
        reasoning_gym:NAME or lm_eval:NAME.
    :param folder: the folder that paths are to be relative to.
    :raises ValueError: if it is none of these, or a file is missing.
    """
    reader, _, source = word.partition(":")
    if reader in READERS and source:
        if reader == "reasoning_gym":
            check_data_set(source, "task")
        return {reader: source, "dev": DEV, "test": TEST}
    files = [Path(name) for name in word.split(",")]
    if len(files) == 1 and files[0].suffix == ".jsonl" and "dev" in files[0].name:
        files.append(files[0].with_name(files[0].name.replace("dev", "test")))
    for file in files:
        if not file.is_file():
            forms = "; expected DEV.jsonl,TEST.jsonl, a JSON file with dev and test, "
            forms += f"reasoning_gym:NAME, lm_eval:NAME, or {FORMS}"
            hint = near_path(file) or near_reader(reader, source) or forms
            raise ValueError(f"task: found no file {file}{hint}")
    if len(files) == 2:
        dev, test = files
        task = {"json_lines": path_from(dev, folder), "test_file": path_from(test, folder)}
        if name_without_split(dev) != dev.stem:
            task["name"] = name_without_split(dev)
        return {**task, **({"metric": "choice_likelihood"} if has_choices(dev) else {})}
    if len(files) == 1 and files[0].suffix == ".json":
        return {"swarm_eval": path_from(files[0], folder), "metric": "choice_likelihood"}
    raise ValueError(f"task: expected DEV.jsonl,TEST.jsonl or one JSON file, found {word!r}")


def near_reader(reader: str, source: str) -> str:
    """`"; did you mean 'lm_eval:arc_easy'?"`, where a reader is misspelt, or nothing.

    :param reader: what stands before the colon.
    :param source: what stands behind it; nothing where there is none.
    """
    near = get_close_matches(reader.replace("-", "_"), READERS, 1)
    return f"; did you mean {f'{near[0]}:{source}'!r}?" if near and source else ""


def name_without_split(dev: Path) -> str:
    """The name of a task whose dev examples are in a file: `sums` for `sums_dev.jsonl`."""
    return re.sub(r"(?<=.)[_-]dev$", "", dev.stem)


def has_choices(file: Path) -> bool:
    """Whether the first line of a file of JSON lines has choices."""
    with open(file, encoding="utf-8") as lines:
        try:
            first = json.loads(next(lines, "{}"))
        except ValueError:
            return False  # evogm check says what is wrong with it
    return isinstance(first, dict) and bool(first.get("choices"))


def suggested_tasks(adapters: "Iterable[LookedAt]") -> list[dict]:
    """Tasks whose data set has the name of an adapter, so that it was probably made for it."""
    known = data_sets_of_reasoning_gym()
    tasks = []
    for adapter in adapters:
        if adapter.name in known:
            tasks.append({"reasoning_gym": adapter.name, "dev": DEV, "test": TEST})
    return tasks


def example_task() -> dict:
    """The settings of the task that `write_examples` writes."""
    files = {"json_lines": EXAMPLES["dev"], "test_file": EXAMPLES["test"]}
    return {**files, "name": "example", "metric": "choice_likelihood"}


def write_examples(folder: Path) -> list[Path]:
    """Write questions in the form that a user's own have to have.

    :param folder: of the settings file. A file that is there stays as it is.
    :return: the files.
    """
    written = []
    for split, name in EXAMPLES.items():
        lines = []
        for number in SUMS[split]:
            right, wrong = str(2 * number), str(2 * number + 1)
            choices = [right, wrong] if number % 2 else [wrong, right]
            answer = "AB"[choices.index(right)]
            question = f"What is {number} plus {number}?"
            lines.append(json.dumps({"question": question, "answer": answer, "choices": choices}))
        path = folder / name
        if not path.exists():
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        written.append(path)
    return written
