"""A task that is a function: it receives a merge, and returns a score or scores by example."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from inspect import Parameter, signature
from typing import Any

from evox_evogm.problems.functions.load_function import digest_of, load_function
from evox_evogm.problems.tasks.custom_task import CustomTask
from evox_evogm.problems.tasks.task import Example

METRIC = "fitness"
SPLITS = ("dev", "test")
POPULATION = "scores_population"  # the attribute that `for_population` sets


@dataclass(frozen=True)
class FitnessTask(CustomTask):
    """A function that scores merges on one split. `fitness_tasks` makes them.

    Its examples have no texts: there is one for each number that the function returns.

    :param function: called with a `MergedModel`, or with a `MergedPopulation`.
    :param source: how reports name the function.
    :param digest: of the function's source.
    :param split: `"dev"` or `"test"`; the function gets it if it takes an argument `split`.
    :param options: further arguments of the function, by name.
    :param population: whether the function receives all merges of a population at once.
    :param by_sign: whether the function returns margins, which are above 0 where the score is 1.
        Otherwise its scores are its outcomes.
    :param measured: whether it is known how many numbers the function returns.
    """

    function: Callable = field(default=len, repr=False, hash=False)
    source: str = ""
    digest: str = ""
    split: str = "dev"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    population: bool = False
    by_sign: bool = False
    measured: bool = False

    def __post_init__(self):
        """Nothing: `fitness_tasks` checks what it makes."""

    @property
    def takes_split(self) -> bool:
        """Whether the function has an argument `split`."""
        return takes_argument(self.function, "split")

    def arguments(self) -> dict[str, Any]:
        """What the function is called with beside the merge."""
        split = {"split": self.split} if self.takes_split else {}
        return {**split, **self.options}

    def with_size(self, count: int, *, by_sign: bool) -> "FitnessTask":
        """The same task, of which it is known what the function returns.

        :param count: how many scores.
        :param by_sign: whether with margins.
        """
        examples = examples_without_texts(count)
        return replace(self, examples=examples, by_sign=by_sign, measured=True)

    @property
    def metric_label(self) -> str:
        """The function."""
        return self.source

    @property
    def counts_by_sign(self) -> bool:
        """Whether a margin counts by being above 0."""
        return self.by_sign

    @property
    def no_derivatives(self) -> str:
        """Why there are no derivatives."""
        return "a function returns no derivatives"

    def tokenize(self, model) -> int:
        """Nothing: a function has prompts of its own."""
        return 0

    def prompts(self, model, cases) -> list:
        """None, see `tokenize`."""
        return []

    def score(self, model, cases=None, *, margins=None, derivatives=None):
        """The scores of the model as it is; merges are scored by `function_scorer.py`."""
        from evox_evogm.problems.functions.function_scorer import score_as_it_is

        if derivatives is not None:
            raise ValueError(f"task {self.name!r}: {self.no_derivatives}")
        return score_as_it_is(self, model, margins)


def for_population(function: Callable) -> Callable:
    """A decorator: the function receives the whole population, as a `MergedPopulation`."""
    setattr(function, POPULATION, True)
    return function


def fitness_tasks(
    function: Callable | str,
    *,
    name: str | None = None,
    folder=".",
    population: bool | None = None,
    options: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
    margins: bool = False,
) -> tuple[FitnessTask, FitnessTask]:
    """The dev and the test task of a function.

    :param function: a function, or `"module:function"`.
    :param name: of the task; by default that of the function.
    :param folder: where the module is looked for first.
    :param population: whether the function receives the whole population; by default if it is
        decorated with `for_population`.
    :param options: further arguments of the function, by name.
    :param sizes: how many numbers the function returns for `"dev"` and for `"test"`. By default
        this is found out by calling it with the base.
    :param margins: with sizes: whether it returns margins too.
    :return: the dev and the test task.
    :raises ValueError: if the function cannot be imported, does not take these arguments, or if
        `sizes` is not a whole number of at least 1 for each split.
    """
    if sizes is not None:
        check_sizes(sizes)
    if isinstance(function, str):
        source = function
        function, digest = load_function(function, folder)
    else:
        source = name_of(function)
        digest = digest_of(function)
    if population is None:
        population = bool(getattr(function, POPULATION, False))
    options = dict(options or {})
    check_arguments(function, source, options)
    tasks = []
    for split in SPLITS:
        task = FitnessTask(
            name=name or source.replace(":", ".").rpartition(".")[2],
            version=f"{source}, sha256 {digest[:12]}",
            metric=METRIC,
            examples=examples_without_texts(1),
            function=function,
            source=source,
            digest=digest,
            split=split,
            options=options,
            population=population,
        )
        if sizes is not None:
            task = task.with_size(sizes[split], by_sign=margins)
        tasks.append(task)
    return tasks[0], tasks[1]


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Refuse sizes that do not say how many numbers a function returns for each split."""
    counts = [sizes.get(split) for split in SPLITS]
    if set(sizes) == set(SPLITS) and all(type(count) is int and count >= 1 for count in counts):
        return
    raise ValueError(
        f"sizes: expected whole numbers of at least 1 for dev and test, found {dict(sizes)}"
    )


def name_of(function: Callable) -> str:
    """A function as `module:function`; of another object that can be called, its type."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def examples_without_texts(count: int) -> tuple[Example, ...]:
    """Examples without texts, one for each number that a function returns."""
    return tuple(Example(str(number), "", "") for number in range(count))


def takes_argument(function: Callable, name: str) -> bool:
    """Whether a function has an argument of this name."""
    try:
        parameters = signature(function).parameters
    except (TypeError, ValueError):  # of some functions of C
        return False
    positional_only = Parameter.POSITIONAL_ONLY
    return name in parameters and parameters[name].kind is not positional_only


def check_arguments(function: Callable, source: str, options: Mapping[str, Any]) -> None:
    """Refuse a function that cannot be called with one merge and these options.

    :raises ValueError: in one sentence.
    """
    if "split" in options:
        expected = "expected options without split, which is dev in the search and test after it"
        raise ValueError(f"fitness {source!r}: {expected}, found {options['split']!r}")
    split = {"split": "dev"} if takes_argument(function, "split") else {}
    try:
        signature(function).bind(None, **{**split, **options})
    except TypeError as error:
        expected = "expected a function of a merge, of split where it takes it, and of options"
        raise ValueError(f"fitness {source!r}: {expected}, found that {error}") from error
    except ValueError:
        return  # a function of C without a signature
