"""The settings of a task: one entry under `tasks` in the settings of a run."""

from typing import Any

from pydantic import ValidationError

from evox_evogm.command.strict_settings import (
    StrictSettings,
    check_names,
    refuse_former_name,
    setting,
)

READERS = {  # and the settings that a reader has beside those of all tasks
    "reasoning_gym": ("seed", "options"),
    "swarm_eval": (),
    "json_lines": ("test_file",),
}
SPLITS = ("dev", "test")
SCORING = ("metric", "max_new_tokens", "match", "continuation", "chat")  # of a `Task` too


class TaskSettings(StrictSettings):
    """Where the examples of a task come from, how many are used, and how they are scored.

    Exactly one of `reasoning_gym`, `swarm_eval` and `json_lines` is given: the reader.
    """

    reasoning_gym: str | None = setting(
        None, "a text", "A data set of reasoning-gym, which makes as many questions as are needed."
    )
    swarm_eval: str | None = setting(
        None, "a text", "A JSON file with the lists dev and test, as Model Swarms has them."
    )
    json_lines: str | None = setting(
        None, "a text", "A file of dev examples, one JSON object a line: question, answer, choices."
    )
    test_file: str | None = setting(
        None, "a text", "With json_lines: the file of test examples, in the same form."
    )
    name: str | None = setting(
        None, "a text", "The name in reports; by default the data set, or the stem of the file."
    )
    dev: int | None = setting(
        None,
        "a number of examples, at least 1",
        "How many examples the search sees; by default all in the file.",
        ge=1,
    )
    test: int | None = setting(
        None,
        "a number of examples, at least 1",
        "How many examples the final table scores besides; by default all in the file.",
        ge=1,
    )
    seed: int = setting(0, "a whole number", "With reasoning_gym: of the questions.")
    options: dict | None = setting(
        None, "a table", "With reasoning_gym: the settings of the data set."
    )
    metric: str | None = setting(
        None,
        "a text",
        "choice_likelihood, gold_log_probability, exact_match or multiple_choice_generation. By "
        "default answers are generated, and matched, or parsed where there are choices.",
    )
    max_new_tokens: int | None = setting(
        None, "a whole number", "Length of generated answers, in tokens."
    )
    match: str | None = setting(
        None, "a text", "How exact_match compares answers: equal, contains or last_10_words."
    )
    continuation: str | None = setting(
        None, "a text", "What choice_likelihood scores of a choice: its key or its text."
    )
    chat: bool | None = setting(
        None, "true or false", "Put the prompt through the tokenizer's chat template."
    )

    @property
    def reader(self) -> str:
        """The reader of the examples."""
        return next(reader for reader in READERS if getattr(self, reader) is not None)

    @property
    def source(self) -> str:
        """What the reader reads: a file, or the name of a data set."""
        return getattr(self, self.reader)

    @property
    def scoring(self) -> dict[str, Any]:
        """The settings that are a `Task`'s too, as far as they are given."""
        return self.model_dump(include=set(SCORING), exclude_none=True)


def parse_task(entry) -> TaskSettings:
    """The settings of a task from one entry under `tasks`.

    :param entry: a table, or settings that were parsed before.
    :raises ValueError: if the entry names no reader, or has an unknown or missing key.
    """
    if isinstance(entry, TaskSettings):
        return entry
    reader = _reader_of(entry)
    kind = "reasoning-gym task" if reader == "reasoning_gym" else "task"
    where = f"{kind} {(entry.get('name') or entry[reader])!r}"
    refuse_former_name(entry, "rule", "metric", f"metric: {entry.get('rule')}", where)
    check_names(entry, [reader, *SPLITS, "name", *READERS[reader], *SCORING], where)
    _check_examples_named(entry, reader, where)
    try:
        return TaskSettings.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        expected = f"expected {name} to be {TaskSettings.expected(name)}"
        raise ValueError(f"{where}: {expected}, found {first['input']!r}") from error


def _reader_of(entry) -> str:
    named = []
    if isinstance(entry, dict):
        named = [reader for reader in READERS if entry.get(reader) is not None]
    if len(named) != 1:
        expected = f"expected a table with one of {', '.join(READERS)}"
        raise ValueError(f"tasks: {expected}, found {entry!r}")
    return named[0]


def _check_examples_named(entry: dict, reader: str, where: str) -> None:
    """Refuse an entry that does not say where both splits come from."""
    if reader == "json_lines" and not isinstance(entry.get("test_file"), str):
        found = repr(entry["test_file"]) if "test_file" in entry else "none"
        raise ValueError(f"{where}: expected test_file beside json_lines, found {found}")
    for split in SPLITS:
        if reader == "reasoning_gym" and entry.get(split) is None:
            expected = f"expected {split} to be {TaskSettings.expected(split)}"
            raise ValueError(f"{where}: {expected}, found None")
