"""Test scores of some merges of the history, for the report: what a dev score is worth on test.

They are scored when the search is over and its merge is chosen, so that nothing is chosen by them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from evox_evogm.command.confirm import score_on
from evox_evogm.command.scores import Scores, dev_scores_by_point
from evox_evogm.command.uncertainty import standard_error_of_mean, standard_errors
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.problems.tasks.task import Task

SCORES = "test_points.jsonl"


def choose_evenly(by_point: Mapping[tuple[float, ...], Scores], count: int) -> list[int]:
    """Places of merges that lie evenly in the order of their mean dev scores, the best first.

    :param by_point: dev scores of each, by task.
    :param count: how many at most; the best and the worst are among them.
    """
    means = [sum(scores.values()) / len(scores) for scores in by_point.values()]
    ranked = sorted(range(len(means)), key=lambda place: -means[place])
    if count >= len(ranked):
        return ranked
    step = (len(ranked) - 1) / max(1, count - 1)
    return [ranked[round(number * step)] for number in range(count)]


def score_history(
    problem: LoRAMergeProblem,
    records: Sequence[dict],
    tests: Sequence[Task],
    count: int,
    out: Path,
) -> dict[str, Any]:
    """Score merges of the history on the test examples.

    What `test_points.jsonl` holds is not scored again.

    :param problem: of the search.
    :param records: the history.
    :param tests: the tasks with test examples.
    :param count: of merges, at most.
    :param out: the run folder.
    :return: `wanted`, and `points`: of each its mean `dev` and `test` score over tasks and the
        standard `error` of the latter, best on dev first. Merges that fail are left out.
    :raises RuntimeError: if none has scores on all dev examples, as on minibatches.
    """
    by_point = dev_scores_by_point(records)
    if not by_point:
        raise RuntimeError(
            "test_points: expected merges with scores on all dev examples, found none"
        )
    points = list(by_point)
    chosen = [points[place] for place in choose_evenly(by_point, count)]
    scored = score_on(problem, torch.tensor(chosen), tests, out, SCORES)
    found = []
    for point in chosen:
        if point not in scored:
            continue
        dev, test = by_point[point], scored[point]
        means = [sum(values) / len(values) for values in test.values()]
        entry = {"dev": sum(dev.values()) / len(dev), "test": sum(means) / len(means)}
        found.append({**entry, "error": standard_error_of_mean(standard_errors(test))})
    return {"wanted": count, "points": found}
