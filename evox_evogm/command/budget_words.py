"""What a budget is cut to, in words."""

from typing import TYPE_CHECKING

from evox_evogm.monitoring.counted import counted

if TYPE_CHECKING:
    from evox_evogm.command.merge_run import MergeRun


def budget_words(run: "MergeRun") -> list[str]:
    """One line that says what a budget in evaluations is cut to; none of another budget.

    :param run: before or after its search.
    """
    budget, made = run.settings.limit.evaluations, run.limit.evaluations
    if budget is None or made is None or run.settings.racing:
        return []
    size, cost = run.algorithm.pop_size, run.cost_of_point
    steps = (made - run.kept) // (size * cost)
    each = "evaluated together" if cost == 1 else f"with gradients, each counted as {cost}"
    merges = "merges" if size > 1 else "merge"
    parts = counted(steps, "population") + f" of {size} {merges} {each}"
    if run.kept:
        parts += ", and the recommended one"
    return [f"budget {budget}: {run.limit}, {parts}"]
