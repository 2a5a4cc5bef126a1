"""Read tasks: the JSON form of Model Swarms' evaluation sets, JSON lines, and procedurally made reasoning-gym tasks.

Every reader returns a dev and a test `Task` whose questions are disjoint.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from evox_evogm.problems.tasks.task import (
    BEST_OPTION,
    INSTRUCTIONS,
    Example,
    Task,
    answer_prompt,
    check_disjoint,
    choice_prompt,
)

# How the paper scores the sets that have no choices: (match, new tokens).
FREE_ANSWER_SETS = {"gsm8k": ("last_10_words", 200), "nlgraph": ("contains", 10)}
SPLITS = {
    "dev": range(0, 20),
    "test": range(20, 50),
    "train": range(50, 100),
}  # percent of all questions


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
        raise ValueError(
            f"{where}: expected JSON, found {error.msg} (line {error.lineno}, column {error.colno})"
        ) from error
    except (ValueError, RecursionError) as error:  # numbers and nesting beyond all measure
        raise ValueError(f"{where}: expected JSON, found {error}") from error


def make_example(
    row: Mapping, where: str, index: int, *, instruction: str = BEST_OPTION, icl: str = ""
) -> Example:
    """An `Example` from a row with `question`, `answer` and perhaps `choices` (key -> text) and `id`.

    :param where: names the row in an error message.
    :param index: of the row, its id where it has none of its own.
    :raises ValueError: if a field is missing or has the wrong type.
    """
    if not isinstance(row, Mapping):
        raise ValueError(
            f"{where}: expected an object with question and answer, found {type(row).__name__}"
        )
    for field in ("question", "answer"):
        if not isinstance(row.get(field), (str, int, float)) or isinstance(row.get(field), bool):
            raise ValueError(f"{where}: expected a text under {field!r}, found {row.get(field)!r}")
    question, answer, choices = str(row["question"]), str(row["answer"]), row.get("choices") or {}
    if isinstance(choices, list):
        choices = {chr(ord("A") + index): text for index, text in enumerate(choices)}
    if not isinstance(choices, Mapping) or not all(
        isinstance(text, str) for text in choices.values()
    ):
        raise ValueError(
            f"{where}: expected choices as key -> text or a list of texts, found {choices!r}"
        )
    texts = json.dumps(
        [question, answer, str(row.get("id", index)), instruction, icl, choices], ensure_ascii=False
    )
    try:
        texts.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: expected text, found half of a character, {texts[error.start]!r}"
        ) from error
    prompt = (
        choice_prompt(question, choices, instruction=instruction, icl=icl)
        if choices
        else answer_prompt(question)
    )
    return Example(str(row.get("id", index)), prompt, answer, tuple(choices.items()))


def _different_ids(examples: list[Example]) -> list[Example]:
    """The published sets give one id to several questions; these get their number behind it."""
    counts = Counter(example.id for example in examples)
    return [
        replace(example, id=f"{example.id} ({index})") if counts[example.id] > 1 else example
        for index, example in enumerate(examples)
    ]


def content_version(*examples: Example) -> str:
    """Twelve hexadecimal digits that change when a prompt, target or choice does."""
    return hashlib.sha256(repr(examples).encode()).hexdigest()[:12]


def _pair(
    name: str, dev: list[Example], test: list[Example], label: str, **settings
) -> tuple[Task, Task]:
    check_disjoint(name, dev, test)
    if "metric" not in settings:
        settings["metric"] = (
            "multiple_choice_generation" if dev and dev[0].choices else "exact_match"
        )
    tag = f"{label}{content_version(*dev, *test)}"
    return Task(name, tag, examples=tuple(dev), **settings), Task(
        name, tag, examples=tuple(test), **settings
    )


def read_swarm_eval(path, *, name: str | None = None, **settings) -> tuple[Task, Task]:
    """Read one file of the form `{"dev": [...], "test": [...]}` with the prompts and rules of the paper.

    :param path: the file; its stem names the set unless `name` is given.
    :param settings: of `Task`; they replace the paper's.
    :return: the dev and the test task.
    :raises ValueError: if the file is not of that form, or test questions stand in dev.
    """
    path = Path(path)
    name = name or path.stem
    data = _parse_json(_read_text(path, f"task {name!r}"), str(path))
    if not isinstance(data, dict) or not all(
        isinstance(data.get(split), list) for split in ("dev", "test")
    ):
        raise ValueError(f"{path}: expected an object with the lists dev and test")
    if not any("choices" in row for row in data["dev"] if isinstance(row, Mapping)):
        match, tokens = FREE_ANSWER_SETS.get(path.stem, ("equal", 16))
        settings = {"metric": "exact_match", "match": match, "max_new_tokens": tokens, **settings}
    else:
        settings = {"metric": "multiple_choice_generation", "max_new_tokens": 10, **settings}
    prompts = {
        "instruction": INSTRUCTIONS.get(path.stem, BEST_OPTION),
        "icl": str(data.get("icl_prompt", "")),
    }
    dev, test = (
        _different_ids(
            [
                make_example(row, f"{path}, {split} {index}", index, **prompts)
                for index, row in enumerate(data[split])
            ]
        )
        for split in ("dev", "test")
    )
    return _pair(name, dev, test, "", **settings)


def read_json_lines(dev, test, *, name: str | None = None, **settings) -> tuple[Task, Task]:
    """Read two files of JSON lines, each line an object with question, answer and perhaps choices and id.

    :param dev: the file of dev examples; its stem names the task unless `name` is given.
    :param test: the file of test examples.
    :return: the dev and the test task.
    :raises ValueError: if a line is not such an object, or test questions stand in dev.
    """
    name = name or Path(dev).stem
    splits = []
    for path in (Path(dev), Path(test)):
        examples = []
        for number, text in enumerate(_read_text(path, f"task {name!r}").split("\n"), start=1):
            if text.strip():
                where = f"{path}, line {number}"
                examples.append(make_example(_parse_json(text, where), where, number))
        splits.append(examples)
    return _pair(name, *splits, "", **settings)


def split_of(question: str) -> str:
    """The split a question belongs to, by a hash of its text: the same whatever seed or size was asked for."""
    percent = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") % 100
    return next(split for split, percents in SPLITS.items() if percent in percents)


def reasoning_gym_rows(
    task: str, split: str, *, seed: int, options: Mapping | None = None
) -> Iterator[dict]:
    """An endless stream of different questions of one split of a reasoning-gym task.

    :param task: the name of a reasoning-gym data set, such as `"syllogism"`.
    :param split: `"dev"`, `"test"` or `"train"`; no question is ever in two of them (`split_of`).
    :param options: settings of that data set.
    :raises ValueError: if the task or an option is unknown, or it has too few questions.
    """
    try:
        import reasoning_gym
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reasoning-gym tasks need the package: pip install reasoning-gym"
        ) from error
    seen, fruitless, block = set(), 0, 0
    while fruitless < 5:
        try:  # 500 questions at a time; blocks are far apart because a data set seeds question i with seed + i
            questions = reasoning_gym.create_dataset(
                task, size=500, seed=seed * 1_000_003 + block * 500, **(options or {})
            )
        except Exception as error:  # of any of its hundred tasks
            raise ValueError(
                f"reasoning-gym task {task!r} with options {dict(options or {})}: {error}"
            ) from error
        before = len(seen)
        for row in questions:
            question = row["question"].strip()
            if split_of(question) == split and question not in seen:
                seen.add(question)
                yield {
                    "question": question,
                    "answer": str(row["answer"]),
                    "id": f"{task}-{seed}-{len(seen) - 1}",
                }
        block, fruitless = block + 1, 0 if len(seen) > before else fruitless + 1
    raise ValueError(
        f"reasoning-gym task {task!r}: found only {len(seen)} different questions in split {split!r}"
    )


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
    """Make a task of `dev` and `test` questions of a reasoning-gym data set, scored by exact match.

    :param seed: of the questions; the same seed gives the same questions under one version of reasoning-gym.
    :return: the dev and the test task.
    """
    name = name or task
    if not isinstance(options or {}, Mapping):
        raise ValueError(
            f"reasoning-gym task {task!r}: expected options to be a table, found {options!r}"
        )
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(
            f"reasoning-gym task {task!r}: expected seed to be a whole number, found {seed!r}"
        )
    splits = []
    for split, size in (("dev", dev), ("test", test)):
        rows = reasoning_gym_rows(task, split, seed=seed, options=options)
        splits.append(
            [make_example(next(rows), f"{task}, {split} {index}", index) for index in range(size)]
        )
    settings = {"metric": "exact_match", **settings}
    return _pair(name, *splits, f"reasoning-gym {version('reasoning-gym')}, ", **settings)
