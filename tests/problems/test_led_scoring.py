"""One process that leads and others that help it: it finds what it would find alone."""

import pytest
import torch
import torch.distributed as dist
from builders import build_model, build_tokenizer
from ranks import on_ranks

from evox_evogm.problems import Example, LoRAMergeProblem, Task, portions
from evox_evogm.problems.led_scoring import LedScoring, help_to_score
from evox_evogm.problems.rank_group import StoreGroup

pytestmark = [pytest.mark.language_model, pytest.mark.slow]

CHOICES = (("A", "yes"), ("B", "no"))
SUMS = tuple(Example(f"sum {i}", f"{i} + {i * i} =", str(i + i * i)) for i in range(9))
PICKS = tuple(Example(f"pick {i}", f"pick {i}" * (i + 1), "AB"[i % 2], CHOICES) for i in range(6))
TASKS = [
    Task("gold", "1", "gold_log_probability", SUMS[:5]),
    Task("choices", "1", "choice_likelihood", PICKS),
]
TEST = [Task("gold", "1", "gold_log_probability", SUMS[5:])]  # with the name of a dev task
POP = torch.tensor([[0.5, 0.5], [1.0, -0.5], [0.0, 0.3]])


@pytest.fixture
def folders(make_adapter):
    return [make_adapter("first", seed=1), make_adapter("second", seed=2)]


def work_of(problem):
    """What the leader does: a population, test scores, and scores of what only it has."""
    unknown = [Task("new", "1", "gold_log_probability", SUMS[:2])]
    found = [problem.evaluate(POP)]
    for tasks in (TEST, unknown):
        found.append(problem.score_together(POP, tasks)[tasks[0].name])
    return [table.tolist() for table in found]


def on_rank(folders, store_path, mode):
    problem = LoRAMergeProblem(
        build_model(),
        folders,
        TASKS,
        other_tasks=TEST,
        tokenizer=build_tokenizer(),
        mode=mode,
        objectives="outcomes",
    )
    rank, count = dist.get_rank(), dist.get_world_size()
    ranks = StoreGroup(dist.FileStore(str(store_path), count), rank, count)
    if rank > 0:
        scored = []
        score = problem.scorer.score_here
        problem.scorer.score_here = lambda pop, *rest: scored.append(len(pop)) or score(pop, *rest)
        help_to_score(problem, ranks)
        return len(scored)
    scoring = LedScoring(problem, ranks)
    problem.scorer.sharing = scoring
    found = work_of(problem)
    scoring.end()
    return found


@pytest.mark.parametrize("mode", ["unmerged", "merged"])
def test_a_leader_finds_with_helpers_what_it_finds_alone(folders, tmp_path, mode, monkeypatch):
    monkeypatch.setattr(portions, "LEAST_TOKENS", 8)
    found, *helpers = on_ranks(3, on_rank, folders, tmp_path / "store", mode)
    assert all(count > 0 for count in helpers)
    options = {"tokenizer": build_tokenizer(), "mode": mode, "objectives": "outcomes"}
    alone = LoRAMergeProblem(build_model(), folders, TASKS, other_tasks=TEST, **options)
    for table, expected in zip(found, work_of(alone), strict=True):
        torch.testing.assert_close(
            torch.tensor(table), torch.tensor(expected), atol=1e-5, rtol=1e-4
        )
