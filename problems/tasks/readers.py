"""Read tasks from the evaluation sets of Model Swarms, from JSON lines, or from reasoning-gym.

Every reader returns a dev and a test `Task` whose questions are disjoint.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from evox_evogm.problems.tasks.published import (
    FREE_ANSWER_SETS,
    WITH_WORKED_EXAMPLE,
    ask_bare_questions,
    published_set,
    published_settings,
)
from evox_evogm.problems.tasks.spearman import SpearmanTask, check_free_answers, is_spearman
from evox_evogm.problems.tasks.task import (
    BEST_OPTION,
    INSTRUCTIONS,
    Example,
    Task,
    answer_prompt,
    check_disjoint,
    check_protocol,
    choice_prompt,
)

# In percent of all questions.
SPLITS = {"dev": range(0, 20), "test": range(20, 50), "train": range(50, 100)}
BLOCK = 500  # reasoning-gym questions that are made at a time
FRUITLESS_BLOCKS = 5  # in a row without a new question, after which no more are expected


def _read_text(path: Path, what: str) -> str:
    if not path.is_file():
        raise ValueError(f"{what}: expected a file, found none at {path}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{what}: expected UTF-8 text, found {path} with {error.reason}"
        ) from error


def _parse_json(text: str, where: str):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}"
        if "\n" in text.strip():
            place = f"line {error.lineno}, {place}"
        raise ValueError(f"{where}: expected JSON, found {error.msg} ({place})") from error
    except (ValueError, RecursionError) as error:  # a number or a nesting that is too large
        raise ValueError(f"{where}: expected JSON, found {error}") from error


def make_example(
    row: Mapping, where: str, index: int, *, instruction: str = BEST_OPTION, icl: str = ""
) -> Example:
    """An `Example` from a row with `question`, `answer` and perhaps `choices` and `id`.

    :param row: `choices` are a mapping of keys to texts, or a list of texts with keys A, B, ...
        With `prompt` in place of `question` the model gets this text, and nothing around it.
    :param where: names the row in an error message.
    :param index: of the row, its id where it has none of its own.
    :param instruction: goes before a question with choices.
    :param icl: worked examples, which go before the instruction.
    :raises ValueError: if a field is missing or has the wrong type.
    """
    if not isinstance(row, Mapping):
        raise ValueError(
            f"{where}: expected an object with question and answer, found {type(row).__name__}"
        )
    bare = "prompt" in row
    if bare and "question" in row:
        raise ValueError(f"{where}: expected a question or a prompt, found both")
    question = _text_field(row, "prompt" if bare else "question", where)
    answer = _text_field(row, "answer", where)
    choices = _choices_field(row, where)
    id = str(row.get("id", index))
    _check_characters([question, answer, id, instruction, icl, choices], where)
    if bare:
        prompt = question
    elif choices:
        prompt = choice_prompt(question, choices, instruction=instruction, icl=icl)
    else:
        prompt = answer_prompt(question)
    return Example(id, prompt, answer, tuple(choices.items()))


def _text_field(row: Mapping, field: str, where: str) -> str:
    """The text, or the number as text, under a name."""
    value = row.get(field)
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise ValueError(f"{where}: expected a text under {field!r}, found {value!r}")
    return str(value)


def _choices_field(row: Mapping, where: str) -> dict[str, str]:
    """The choices of a row by their keys; empty where it has none."""
    choices = row.get("choices") or {}
    if isinstance(choices, list):
        choices = {chr(ord("A") + index): text for index, text in enumerate(choices)}
    is_mapping = isinstance(choices, Mapping)
    if not is_mapping or not all(isinstance(text, str) for text in choices.values()):
        raise ValueError(
            f"{where}: expected choices as key -> text or a list of texts, found {choices!r}"
        )
    return dict(choices)


def _check_characters(content: list, where: str) -> None:
    """Refuse half of a surrogate pair, which JSON can hold and no file can.

    :param content: whatever json can write.
    """
    text = json.dumps(content, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: expected text, found half of a character, {text[error.start]!r}"
        ) from error


def _with_different_ids(examples: list[Example]) -> list[Example]:
    """The examples, with their number behind each id that several have.

    The published sets give one id to several questions.
    """
    counts = Counter(example.id for example in examples)
    renamed = []
    for index, example in enumerate(examples):
        if counts[example.id] > 1:
            example = replace(example, id=f"{example.id} ({index})")
        renamed.append(example)
    return renamed


def content_version(examples: list[Example]) -> str:
    """Twelve hexadecimal digits that change when a prompt, target or choice does."""
    content = repr(tuple(examples))
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _dev_and_test(
    name: str, dev: list[Example], test: list[Example], settings: Mapping, label: str = ""
) -> tuple[Task, Task]:
    """The two tasks.

    :param settings: of `Task`. Without a metric, the first example decides between multiple choice
        and exact match.
    :param label: goes before the version.
    """
    check_disjoint(name, dev, test)
    has_choices = bool(dev and dev[0].choices)
    metric = "multiple_choice_generation" if has_choices else "exact_match"
    settings = {"metric": metric, **settings}
    tag = f"{label}{content_version(dev + test)}"
    kind = SpearmanTask if is_spearman(settings) else Task
    if kind is SpearmanTask:
        check_free_answers(name, [*dev, *test])
    dev_task = kind(name, tag, examples=tuple(dev), **settings)
    test_task = kind(name, tag, examples=tuple(test), **settings)
    return dev_task, test_task


def read_swarm_eval(
    path, *, name: str | None = None, protocol: str = "ours", **settings
) -> tuple[Task, Task]:
    """Read one file of the form `{"dev": [...], "test": [...]}`, with the paper's metrics.

    :param path: the file. Its stem names the set unless `name` is given.
    :param protocol: `"ours"`, or `"published"`: prompts, lengths, parser and scores of the paper's
        own code, see `published.py`.
    :param settings: of `Task`; they replace the paper's, with `"published"` only `chat` and
        `metric="abstain_qa"`.
    :return: the dev and the test task.
    :raises ValueError: if the file is not of that form, test questions stand in dev, or a setting
        does not fit the protocol.
    """
    path = Path(path)
    name = name or path.stem
    data = _parse_json(_read_text(path, f"task {name!r}"), str(path))
    is_object = isinstance(data, dict)
    if not is_object or not all(isinstance(data.get(split), list) for split in ("dev", "test")):
        raise ValueError(f"{path}: expected an object with the lists dev and test")
    check_protocol(name, protocol)
    if protocol == "published":
        examples, settings = _published(data, path, name, settings)
    else:
        icl = str(data.get("icl_prompt", ""))
        examples = _swarm_examples(data, path, path.stem, icl)
        settings = {**_swarm_settings(data["dev"], path.stem), **settings}
    for split, found in examples.items():
        if not found:
            raise ValueError(f"task {name!r}: expected at least one example in {split}, found none")
    return _dev_and_test(name, examples["dev"], examples["test"], settings)


def _published(
    data: Mapping, path: Path, name: str, given: Mapping
) -> tuple[dict[str, list[Example]], dict]:
    """The examples of both splits by protocol `published`, and the settings of `Task`.

    :param data: what the file holds.
    :param given: settings that stand in place of the protocol's.
    """
    try:
        set_name = published_set(path.stem, data.get("dataset"))
        settings = published_settings(set_name, given)
    except ValueError as error:
        raise ValueError(f"task {name!r}: {error}") from error
    icl = ""
    if set_name == WITH_WORKED_EXAMPLE:
        icl = _text_field(data, "icl_prompt", str(path))
    examples = _swarm_examples(data, path, set_name, icl)
    if set_name in FREE_ANSWER_SETS:
        for split in examples:
            examples[split] = ask_bare_questions(name, data[split], examples[split])
    return examples, settings


def _swarm_examples(data: Mapping, path: Path, set_name: str, icl: str) -> dict[str, list[Example]]:
    """The examples of both splits of a file of Model Swarms."""
    instruction = INSTRUCTIONS.get(set_name, BEST_OPTION)
    by_split = {}
    for split in ("dev", "test"):
        examples = []
        for index, row in enumerate(data[split]):
            where = f"{path}, {split} {index}"
            examples.append(make_example(row, where, index, instruction=instruction, icl=icl))
        by_split[split] = _with_different_ids(examples)
    return by_split


def _swarm_settings(rows: list, set_name: str) -> dict:
    """The settings of `Task` with which the paper scores a set."""
    if any("choices" in row for row in rows if isinstance(row, Mapping)):
        return {"metric": "multiple_choice_generation", "max_new_tokens": 10}
    match, max_new_tokens = FREE_ANSWER_SETS.get(set_name, ("equal", 16))
    return {"metric": "exact_match", "match": match, "max_new_tokens": max_new_tokens}


def read_json_lines(dev, test, *, name: str | None = None, **settings) -> tuple[Task, Task]:
    """Read two files of JSON lines. Each line is an object as `make_example` takes it.

    :param dev: the file of dev examples. Its stem names the task unless `name` is given.
    :param test: the file of test examples.
    :param settings: of `Task`.
    :return: the dev and the test task.
    :raises ValueError: if a line is not such an object, or test questions stand in dev.
    """
    name = name or Path(dev).stem
    dev_examples = _read_lines(Path(dev), name)
    test_examples = _read_lines(Path(test), name)
    return _dev_and_test(name, dev_examples, test_examples, settings)


def _read_lines(path: Path, name: str) -> list[Example]:
    """The examples of one file of JSON lines."""
    examples = []
    text = _read_text(path, f"task {name!r}")
    # str.splitlines would also cut at characters that JSON allows within a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            examples.append(make_example(_parse_json(line, where), where, number))
    return examples


def split_of(question: str) -> str:
    """The split a question belongs to, by a hash of its text.

    It is the same for every seed and for every size of a task.
    """
    digest = hashlib.sha256(question.encode()).digest()
    percent = int.from_bytes(digest[:8], "big") % 100
    for split, percents in SPLITS.items():
        if percent in percents:
            return split
    raise AssertionError(f"no split has {percent} percent")


def reasoning_gym_rows(
    task: str, split: str, *, seed: int, options: Mapping | None = None
) -> Iterator[dict]:
    """An endless stream of different questions of one split of a reasoning-gym task.

    :param task: the name of a reasoning-gym data set, such as `"syllogism"`.
    :param split: `"dev"`, `"test"` or `"train"`. No question is in two of them (`split_of`).
    :param options: settings of that data set.
    :raises ValueError: if the task or an option is unknown, or it has too few questions.
    :raises ModuleNotFoundError: if reasoning-gym is not installed.
    """
    seen: set[str] = set()
    block = 0
    fruitless = 0
    while fruitless < FRUITLESS_BLOCKS:
        before = len(seen)
        for row in _reasoning_gym_block(task, seed, block, options or {}):
            question = row["question"].strip()
            if split_of(question) == split and question not in seen:
                number = len(seen)
                seen.add(question)
                answer = str(row["answer"])
                yield {"question": question, "answer": answer, "id": f"{task}-{seed}-{number}"}
        block += 1
        fruitless = fruitless + 1 if len(seen) == before else 0
    raise ValueError(
        f"reasoning-gym task {task!r}: found only {len(seen)} different questions "
        f"in split {split!r}"
    )


def _reasoning_gym_block(task: str, seed: int, block: int, options: Mapping):
    """`BLOCK` questions of a reasoning-gym data set.

    A data set seeds question i with seed + i, so the first seeds of blocks are that far apart.
    """
    try:
        import reasoning_gym
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reasoning-gym tasks need the package: pip install reasoning-gym"
        ) from error
    first_seed = seed * 1_000_003 + block * BLOCK
    try:
        return reasoning_gym.create_dataset(task, size=BLOCK, seed=first_seed, **options)
    except Exception as error:  # each of its hundred tasks raises its own
        raise ValueError(
            f"reasoning-gym task {task!r} with options {dict(options)}: {error}"
        ) from error


def read_reasoning_gym(
    task: str,
    *,
    dev: int,
    test: int,
    seed: int = 0,
    options: Mapping | None = None,
    name: str | None = None,
    **settings,
) -> tuple[Task, Task]:
    """Make a task of questions of a reasoning-gym data set, scored by exact match.

    :param task: the name of the data set.
    :param dev: the number of dev questions.
    :param test: the number of test questions.
    :param seed: of the questions. The same seed gives the same questions under one version of
        reasoning-gym.
    :param options: settings of the data set.
    :param name: of the task; by default that of the data set.
    :param settings: of `Task`.
    :return: the dev and the test task.
    :raises ValueError: if the data set, an option or the seed cannot be used.
    :raises ModuleNotFoundError: if reasoning-gym is not installed.
    """
    if not isinstance(options or {}, Mapping):
        raise ValueError(
            f"reasoning-gym task {task!r}: expected options to be a table, found {options!r}"
        )
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(
            f"reasoning-gym task {task!r}: expected seed to be a whole number, found {seed!r}"
        )
    examples: dict[str, list[Example]] = {}
    for split, size in (("dev", dev), ("test", test)):
        rows = reasoning_gym_rows(task, split, seed=seed, options=options)
        examples[split] = []
        for index in range(size):
            where = f"{task}, {split} {index}"
            examples[split].append(make_example(next(rows), where, index))
    settings = {"metric": "exact_match", **settings}
    label = f"reasoning-gym {version('reasoning-gym')}, "
    return _dev_and_test(name or task, examples["dev"], examples["test"], settings, label)
