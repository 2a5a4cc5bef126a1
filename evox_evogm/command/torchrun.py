"""A merge under torchrun: rank 0 runs the command, the other ranks help it to score."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from evox_evogm.command.merge_run import MergeRun
from evox_evogm.command.run_files import REGMEAN
from evox_evogm.command.settings import RunSettings
from evox_evogm.problems.led_scoring import LedScoring, help_to_score
from evox_evogm.problems.rank_group import RankGroup, StoreGroup


def ranks_of_torchrun() -> RankGroup:
    """The processes that torchrun started with this one, or this one alone."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return RankGroup()
    store, rank, count = next(dist.rendezvous("env://"))
    return StoreGroup(store, rank, count)


@contextmanager
def helped(merge_run: MergeRun, ranks: RankGroup) -> Iterator[None]:
    """Inside the block the other ranks help a run to score; afterwards they end.

    A run that is finished lets them go at once.
    """
    if ranks.count == 1:
        yield
        return
    problem = merge_run.problem
    if merge_run.finished:
        ranks.exchange(None)
        yield
        return
    found = {"dtype": merge_run.dtype, "confirm": None, "trial": False}
    if problem.chat_date is not None:
        found["chat_date"] = problem.chat_date.isoformat()
    regressed = merge_run.out / REGMEAN
    experts = regressed.read_bytes() if regressed.is_file() else None
    ranks.exchange((merge_run.settings.model_copy(update=found), experts))
    scoring = LedScoring(problem, ranks)
    problem.scorer.sharing = scoring
    print(f"{ranks.count} ranks score merges together", flush=True)
    yield
    problem.scorer.sharing = None
    scoring.end()


def help_run(folder: Path, words: Sequence[str], ranks: RankGroup) -> None:
    """Help rank 0 to score until its run ends.

    :param folder: that paths in the settings are relative to.
    :param words: `key=value` words that are in the settings.
    """
    received: tuple[RunSettings, bytes | None] | None = ranks.exchange(None)[0]
    if received is None:
        return
    settings, experts = received
    with tempfile.TemporaryDirectory() as out:
        if experts is not None:
            (Path(out) / REGMEAN).write_bytes(experts)
        with MergeRun(settings, folder, out, words) as merge_run:
            help_to_score(merge_run.problem, ranks)
