"""The setting `minibatches`: a number, or what the budget makes of it."""

from typing import TYPE_CHECKING

from evox_evogm.problems.minibatches import minibatches_for

if TYPE_CHECKING:
    from evox_evogm.command.settings import RunSettings
    from evox_evogm.command.tasks import RunTasks


def check_minibatches(settings: "RunSettings") -> None:
    """Refuse minibatches where no gradient is followed, or whole evaluations are needed.

    :raises ValueError: saying what was expected.
    """
    count = settings.minibatches
    if count in ("auto", 1):
        return
    if settings.algorithm != "GradientSearch":
        expected = f"expected auto or 1 with algorithm {settings.algorithm}"
        reason = "only GradientSearch follows gradients"
        raise ValueError(f"minibatches: {expected}, found {count}; {reason}")
    if settings.confirm:
        reason = "it compares merges by all dev examples"
        raise ValueError(f"minibatches: expected auto or 1 with confirm, found {count}; {reason}")


def count_of(settings: "RunSettings") -> int:
    """Minibatches an epoch; 1 where a search has none, or they are not chosen yet."""
    if settings.algorithm != "GradientSearch" or settings.minibatches == "auto":
        return 1
    return settings.minibatches


def with_minibatches(settings: "RunSettings", tasks: "RunTasks") -> "RunSettings":
    """The settings with a number of minibatches in place of `auto`.

    :param tasks: of the run.
    """
    if settings.minibatches != "auto":
        return settings
    count = 1
    if settings.algorithm == "GradientSearch" and not settings.confirm:
        examples = [len(task.examples) for task in tasks.dev]
        count = minibatches_for(settings.limit.evaluations, examples, settings.pop_size or 1)
    return settings.model_copy(update={"minibatches": count})
