"""The settings of a task: one entry under `tasks` in the settings of a run."""

from typing import Any

from pydantic import ValidationError

from evox_evogm.command.strict_settings import (
    StrictSettings,
    check_names,
    near_name,
    refuse_former_name,
    setting,
)

READERS = {  # and the settings that a reader has beside those of all tasks
    "reasoning_gym": ("seed", "options"),
    "swarm_eval": ("protocol",),
    "json_lines": ("test_file",),
    "images": ("test_images", "head", "classes", "processor", "seed"),
    "fitness": ("population", "options", "margins"),
    "lm_eval": (
        "filter",
        "num_fewshot",
        "fewshot_seed",
        "include_path",
        "system_instruction",
        "confirm_unsafe_code",
    ),
}
SPLITS = ("dev", "test")
NAMES = ("name", "domain", "weight")
SCORING = ("metric", "max_new_tokens", "match", "continuation", "chat")  # of a `Task` too
SCORING_OF = {"fitness": (), "images": (), "lm_eval": ("metric", "chat")}  # where it is less

# What stands in `problems/tasks/task.py` too: importing that takes seconds.
METRICS_OF_CHOICES = ("choice_likelihood", "multiple_choice_generation", "abstain_qa")
METRICS_OF_ANSWERS = ("exact_match", "gold_log_probability", "spearman")
WITHOUT_CHOICES = ("spearman",)
ALLOWED = {
    "metric": (*METRICS_OF_CHOICES, *METRICS_OF_ANSWERS),
    "match": ("equal", "contains", "last_10_words"),
    "continuation": ("key", "text"),
    "protocol": ("ours", "published"),
}
OF_PUBLISHED = ("multiple_choice_generation", "abstain_qa", "exact_match")


class TaskSettings(StrictSettings):
    """Where the examples of a task come from, how many are used, and how they are scored.

    Exactly one of `reasoning_gym`, `swarm_eval`, `json_lines`, `images`, `fitness` and `lm_eval` is
    given: the reader.
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
    images: str | None = setting(
        None,
        "a folder or a file",
        "Dev images of a task for an image model: a folder with a folder of images for each class, "
        "or an .npz file with the arrays images (bytes) and labels. They are taken in random "
        "order, always the same.",
    )
    test_images: str | None = setting(
        None, "a folder or a file", "With images: the test images, in the same form."
    )
    head: str | None = setting(
        None,
        "a file, a folder or a hub id",
        "With images: the linear layer of the task, which is not merged: a safetensors file with "
        "weight and bias, or the folder or hub id of an adapter or a whole model with a "
        "classifier.",
    )
    classes: list[str] | None = setting(
        None,
        "a list of names",
        "With images: the names of the folders in the order of the rows of the head; by default "
        "as the config.json beside the head has them, else alphabetical.",
    )
    processor: str | None = setting(
        None,
        "a folder or hub id",
        "With images: where the image processor is; by default with the base.",
    )
    fitness: str | None = setting(
        None,
        "a text",
        "A function of yours, as module:function, such as my_fitness:score. The module is looked "
        "for in the folder of the settings file first. The function receives a merge as a model "
        "with generate and log_probabilities, and split where it takes it, and returns a number or "
        "a list of numbers, higher is better.",
    )
    population: bool | None = setting(
        None,
        "true or false",
        "With fitness: the function receives all merges of a population at once; by default if it "
        "is decorated with for_population.",
    )
    margins: bool | None = setting(
        None,
        "true or false",
        "With fitness: whether the function returns scores and margins. This, dev and test are "
        "found out by calling it with the base where they are not given.",
    )
    lm_eval: str | None = setting(
        None,
        "a text",
        "A task of the LM Evaluation Harness by its name, or a group of tasks, as the package "
        "lm-eval has them.",
    )
    filter: str | None = setting(
        None,
        "a text",
        "With lm_eval: the filter of the answers, by its name in the task; by default its first.",
    )
    num_fewshot: int | None = setting(
        None,
        "a whole number, at least 0",
        "With lm_eval: worked examples before each question; by default the task's own number.",
        ge=0,
    )
    fewshot_seed: int = setting(
        1234, "a whole number", "With lm_eval: of the choice of worked examples."
    )
    include_path: str | None = setting(
        None,
        "a folder",
        "With lm_eval: a folder with YAML files of tasks beside the harness's own.",
    )
    system_instruction: str | None = setting(
        None, "a text", "With lm_eval: goes before everything else in a prompt."
    )
    confirm_unsafe_code: bool = setting(
        False,
        "true or false",
        "With lm_eval: that the task may run code which the model writes.",
    )
    name: str | None = setting(
        None, "a text", "The name in reports; by default the data set, or the stem of the file."
    )
    domain: str | None = setting(
        None, "a text", "A name that several tasks share; reports have their harmonic mean."
    )
    dev: int | None = setting(
        None,
        "a number of examples, at least 1",
        "How many examples the search sees; by default all in the file. With fitness: how many "
        "numbers the function returns.",
        ge=1,
    )
    test: int | None = setting(
        None,
        "a number of examples, at least 1",
        "How many examples the final table scores besides; by default all in the file. With "
        "fitness: how many numbers the function returns of test.",
        ge=1,
    )
    seed: int = setting(
        0,
        "a whole number",
        "With reasoning_gym: of the questions. With images: of their order.",
    )
    options: dict | None = setting(
        None,
        "a table",
        "With reasoning_gym: the settings of the data set. With fitness: further arguments of the "
        "function, by name.",
    )
    weight: int | float = setting(
        1,
        "a number above 0",
        "Of the task in the mean over tasks, or in their harmonic mean.",
        gt=0,
        allow_inf_nan=False,
    )
    protocol: str | None = setting(
        None,
        "a text",
        "With swarm_eval: ours, or published, which has the prompts, lengths, parser and scores of "
        "the paper's own code; then metric may be abstain_qa, and nothing else but chat is left "
        "open.",
    )
    metric: str | None = setting(
        None,
        "a text",
        "choice_likelihood, gold_log_probability, exact_match, multiple_choice_generation, "
        "abstain_qa, or spearman for answers that are numbers. By default answers are generated, "
        "and matched, or parsed where there are choices. With lm_eval: a metric of the task, by "
        "default its first that is better when higher.",
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
    def sizes(self) -> dict[str, int] | None:
        """How many numbers a function returns, by split; None if that is to be found out."""
        if self.dev is None or self.test is None:
            return None
        return {"dev": self.dev, "test": self.test}

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
    scoring = SCORING_OF.get(reader, SCORING)
    check_names(entry, [reader, *SPLITS, *NAMES, *READERS[reader], *scoring], where)
    _check_examples_named(entry, reader, where)
    try:
        settings = TaskSettings.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        expected = f"expected {name} to be {TaskSettings.expected(name)}"
        raise ValueError(f"{where}: {expected}, found {first['input']!r}") from error
    _check_scoring(settings, where)
    return settings


def _check_scoring(settings: TaskSettings, where: str) -> None:
    """Refuse a name that scoring does not know, or a metric that the examples cannot have."""
    if settings.reader == "lm_eval":
        return  # whose tasks have metrics of their own
    for name, allowed in ALLOWED.items():
        value = getattr(settings, name)
        if value is not None and value not in allowed:
            expected = f"expected one of {', '.join(allowed)}"
            found = f"found {value!r}{near_name(value, allowed)}"
            raise ValueError(f"{where}: {name}: {expected}, {found}")
    if settings.reader == "reasoning_gym":
        check_metric_fits(settings, with_choices=False)
    if settings.protocol == "published" and settings.metric not in (None, *OF_PUBLISHED):
        expected = f"expected one of {', '.join(OF_PUBLISHED)} with protocol published"
        raise ValueError(f"{where}: metric: {expected}, found {settings.metric!r}")


def check_metric_fits(settings: TaskSettings, *, with_choices: bool) -> None:
    """Refuse a metric that needs choices where there are none, or the other way round.

    :param with_choices: whether the examples have choices.
    :raises ValueError: naming the metrics that fit.
    """
    metric = settings.metric
    unfit = WITHOUT_CHOICES if with_choices else METRICS_OF_CHOICES
    if metric not in unfit:
        return
    fitting = [known for known in ALLOWED["metric"] if known not in unfit]
    where = f"task {settings.name or settings.source!r}"
    examples = "examples with choices" if with_choices else "examples without choices"
    expected = f"expected one of {', '.join(fitting)} for {examples}"
    raise ValueError(f"{where}: metric: {expected}, found {metric!r}")


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
    for name in ("test_images", "head"):
        if reader == "images" and not isinstance(entry.get(name), str):
            found = repr(entry[name]) if name in entry else "none"
            raise ValueError(f"{where}: expected {name} beside images, found {found}")
    given = [split for split in SPLITS if entry.get(split) is not None]
    if reader == "fitness" and len(given) == 1:
        raise ValueError(f"{where}: expected dev and test, or neither, found {given[0]} alone")
    for split in SPLITS:
        if reader == "reasoning_gym" and entry.get(split) is None:
            expected = f"expected {split} to be {TaskSettings.expected(split)}"
            raise ValueError(f"{where}: {expected}, found None")
