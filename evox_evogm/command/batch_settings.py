"""The settings `batch_tokens` and `max_memory`: numbers, or what is chosen on the device."""

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from evox_evogm.command.settings import RunSettings
    from evox_evogm.problems.inference.batch_sizes import BatchSizes
    from evox_evogm.problems.lora_merge import LoRAMergeProblem

NAMES = ("batch_tokens", "max_memory")
OPEN = (None, "auto")  # values that leave the choice to the run
# Of a table, and the least values.
SIZES = {"tokens": 1, "rows": 1, "pass_tokens": 0, "step_tokens": 0, "static_from": 1}
GIB = 2**30


def check_batch_tokens(value: int | str | dict | None) -> None:
    """Refuse numbers that no batch can have.

    :raises ValueError: naming the first one.
    """
    if isinstance(value, int) and value < 1:
        raise ValueError(f"batch_tokens: expected at least 1, found {value}")
    if not isinstance(value, dict):
        return
    for name, number in value.items():
        if name not in SIZES:
            raise ValueError(f"batch_tokens: expected some of {', '.join(SIZES)}, found {name!r}")
        if number < SIZES[name]:
            expected = f"expected {name} of at least {SIZES[name]}"
            raise ValueError(f"batch_tokens: {expected}, found {number}")


def check_max_memory(value: float | str | None) -> None:
    """Refuse a number that is no amount of memory.

    :raises ValueError: saying what was expected.
    """
    if value is None or isinstance(value, str):
        return
    if not 0 < value < 2**30:  # nor NaN
        expected = "expected a number of GiB above 0 and below 2**30"
        raise ValueError(f"max_memory: {expected}, found {value}")


def batch_tokens_of(settings: "RunSettings") -> "int | BatchSizes | Literal['auto'] | None":
    """The argument `batch_tokens` of `LoRAMergeProblem`."""
    from evox_evogm.problems.inference.batch_sizes import BatchSizes

    value = settings.batch_tokens
    return BatchSizes(**value) if isinstance(value, dict) else value


def max_memory_of(settings: "RunSettings") -> int | Literal["auto"] | None:
    """The argument `max_memory` of `LoRAMergeProblem`, in bytes."""
    value = settings.max_memory
    return value if value is None or value == "auto" else int(value * GIB)


def chosen_batches(settings: "RunSettings", problem: "LoRAMergeProblem") -> dict[str, Any]:
    """What was chosen where the settings leave it open, as settings."""
    found: dict[str, Any] = {}
    if settings.batch_tokens in OPEN:
        found["batch_tokens"] = problem.batch_sizes.as_setting()
    if settings.max_memory in OPEN:
        found["max_memory"] = problem.max_memory / GIB
    return found
