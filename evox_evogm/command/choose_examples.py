"""Which examples a report shows: those in which base, expert and merge score differently."""

from collections.abc import Mapping, Sequence

TOLERANCE = 1e-6  # up to which two scores are alike
# From what a reader learns most of to what says nothing.
PATTERNS = ("merge over expert", "expert over merge", "both over base", "base over both", "alike")

# By model (base, expert, merge) and task a score per example.
Scores = Mapping[str, Mapping[str, Sequence[float]]]


def pattern_of(base: float, expert: float, merge: float) -> str:
    """Which of the three scores of an example is ahead, one of `PATTERNS`."""
    if merge - expert > TOLERANCE:
        return "merge over expert"
    if expert - merge > TOLERANCE:
        return "expert over merge"
    if merge - base > TOLERANCE:
        return "both over base"
    if base - merge > TOLERANCE:
        return "base over both"
    return "alike"


def examples_by_pattern(scores: Scores) -> dict[str, list[tuple[str, int]]]:
    """By pattern the examples that have it, as task and number."""
    found: dict[str, list[tuple[str, int]]] = {pattern: [] for pattern in PATTERNS}
    for task, merge_scores in scores["merge"].items():
        base_scores, expert_scores = scores["base"][task], scores["expert"][task]
        for index, merge in enumerate(merge_scores):
            pattern = pattern_of(base_scores[index], expert_scores[index], merge)
            found[pattern].append((task, index))
    return found


def count_patterns(scores: Scores) -> dict[str, int]:
    """How many examples have each pattern."""
    return {pattern: len(found) for pattern, found in examples_by_pattern(scores).items()}


def choose_examples(scores: Scores, count: int) -> list[tuple[str, int]]:
    """Examples to show, as task and number.

    They are taken from the patterns in turn, so that what the merge lost is shown as well as what
    it won, and each time from the task that was taken least so far. Examples in which all score
    alike are taken last.

    :param count: how many, if there are as many.
    """
    by_pattern = examples_by_pattern(scores)
    alike = by_pattern.pop("alike")
    chosen: list[tuple[str, int]] = []
    for pools in (list(by_pattern.values()), [alike]):
        while len(chosen) < count and any(pools):
            for pool in pools:
                if pool and len(chosen) < count:
                    place = _of_rarest_task(pool, chosen)
                    chosen.append(pool.pop(place))
    return chosen


def _of_rarest_task(pool: Sequence[tuple[str, int]], chosen: Sequence[tuple[str, int]]) -> int:
    """The place in the pool of the first example of the task that was chosen least."""
    tasks = [task for task, _ in chosen]
    return min(range(len(pool)), key=lambda place: tasks.count(pool[place][0]))
