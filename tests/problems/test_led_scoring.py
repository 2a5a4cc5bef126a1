"""One process that leads and others that help it: it finds what it would find alone."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from builders import build_model, build_tokenizer
from ranks import on_ranks

from evox_evogm.problems import (
    Example,
    LoRAMergeProblem,
    Task,
    fitness_tasks,
    led_scoring,
    portions,
)
from evox_evogm.problems.images.image_task import image_task
from evox_evogm.problems.led_scoring import LedScoring, Part, Work, help_to_score
from evox_evogm.problems.population_scorer import PopulationScorer
from evox_evogm.problems.rank_group import RankGroup, StoreGroup
from evox_evogm.problems.shared_scoring import Plan

CHOICES = (("A", "yes"), ("B", "no"))
SUMS = tuple(Example(f"sum {i}", f"{i} + {i * i} =", str(i + i * i)) for i in range(9))
PICKS = tuple(Example(f"pick {i}", f"pick {i}" * (i + 1), "AB"[i % 2], CHOICES) for i in range(6))
TASKS = [
    Task("gold", "1", "gold_log_probability", SUMS[:5]),
    Task("choices", "1", "choice_likelihood", PICKS),
]
TEST = [Task("gold", "1", "gold_log_probability", SUMS[5:])]  # with the name of a dev task
POP = torch.tensor([[0.5, 0.5], [1.0, -0.5], [0.0, 0.3]])


def by_split(merge, split):
    """Scores of which those on test are larger by 1."""
    score = float(sum(merge.coefficients)) + (split == "test")
    return [score, 2 * score]


FUNCTION, FUNCTION_ON_TEST = fitness_tasks(by_split, sizes={"dev": 2, "test": 2})
TASKS.append(FUNCTION)
TEST.append(FUNCTION_ON_TEST)


@pytest.fixture
def folders(make_adapter):
    return [make_adapter("first", seed=1), make_adapter("second", seed=2)]


def work_of(problem):
    """What the leader does: a population, test scores, and scores of what only it has."""
    unknown = [Task("new", "1", "gold_log_probability", SUMS[:2])]
    found = [problem.evaluate(POP)]
    for tasks in (TEST[:1], unknown, TEST[1:]):
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


@pytest.mark.language_model
@pytest.mark.slow
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
    on_test = POP.sum(1, keepdim=True) + 1
    torch.testing.assert_close(torch.tensor(found[3]), torch.cat([on_test, 2 * on_test], 1))


class Leader:
    """The ranks of a helper, whose leader has some work to do.

    :param works: what it wants, in turn.
    """

    def __init__(self, *works):
        self.works = list(works)

    def exchange(self, mine):
        return [self.works.pop(0) if self.works else None]


def test_a_helper_makes_room_for_merged_weights_and_keeps_halved_batches(monkeypatch):
    merged = Plan({"gold": "merged"}, ())
    scorer = PopulationScorer.__new__(PopulationScorer)  # without a base and experts
    scorer.language_model = SimpleNamespace(max_memory=1000, batch_sizes=None)
    scorer.max_memory, scorer.modes, scorer._warned_of_copy = 1000, {}, False
    scorer.weight_copy = SimpleNamespace(bytes=300)
    seen = []

    def take_portions(ranks, scorer, *work):
        seen.append((scorer.language_model.max_memory, scorer.language_model.batch_sizes))
        scorer.language_model.batch_sizes = "halved"

    monkeypatch.setattr(led_scoring, "take_portions", take_portions)
    works = [Work(POP, (), merged, sizes, False) for sizes in ("measured", "measured", "larger")]
    problem = SimpleNamespace(scorer=scorer, tasks=[], other_tasks=[])
    help_to_score(problem, Leader(*works))
    assert seen == [(700, "measured"), (700, "halved"), (700, "larger")]


def image_tasks():
    """Two splits that differ in pixels alone."""
    head = torch.nn.Linear(2, 3)
    splits = []
    for value in (0.0, 1.0):
        splits.append(image_task("images", torch.full((2, 3, 4, 4), value), [0, 1], head))
    return splits


@pytest.mark.parametrize("tasks", [(FUNCTION, FUNCTION_ON_TEST), image_tasks()])
def test_splits_with_equal_examples_are_told_apart(tasks):
    dev, test = tasks
    problem = SimpleNamespace(scorer=None, tasks=[dev], other_tasks=[test])
    leader = LedScoring(problem, RankGroup())
    assert leader.part_of(dev) == Part(0, (0, 1))
    assert leader.part_of(test) == Part(1, (0, 1))
    assert leader.part_of(test.take(1)) == Part(1, (0,))
    problem.other_tasks = []
    assert LedScoring(problem, RankGroup()).part_of(test) is None
