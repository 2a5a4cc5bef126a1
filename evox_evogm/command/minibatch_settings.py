"""The setting `minibatches`: a number, or what the budget makes of it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evox_evogm.command.settings import RunSettings
    from evox_evogm.command.tasks import RunTasks


def check_gradients(settings: "RunSettings") -> None:
    """Refuse minibatches where no gradient is followed.

    :raises ValueError: saying what was expected.
    """
    count = settings.minibatches
    if count not in ("auto", 1) and settings.algorithm != "GradientSearch":
        expected = f"expected auto or 1 with algorithm {settings.algorithm}"
        reason = "only GradientSearch follows gradients"
        raise ValueError(f"minibatches: {expected}, found {count}; {reason}")


def check_whole_evaluations(settings: "RunSettings") -> None:
    """Refuse minibatches where merges are compared by all dev examples.

    :raises ValueError: saying what was expected.
    """
    if settings.confirm and count_of(settings) > 1:
        expected = f"expected null with {settings.minibatches} minibatches"
        reason = "no merge of the search has a score on all dev examples"
        raise ValueError(f"confirm: {expected}, found {settings.confirm}; {reason}")


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
    from evox_evogm.problems.minibatches import minibatches_for

    count = 1
    if settings.algorithm == "GradientSearch" and not settings.confirm:
        examples = [len(task.examples) for task in tasks.dev]
        count = minibatches_for(settings.limit.evaluations, examples, settings.pop_size or 1)
    return settings.model_copy(update={"minibatches": count})
