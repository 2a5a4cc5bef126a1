"""Ranks that share work, wait for each other, and notice when one is gone."""

import os
import signal
import time

import pytest
from ranks import on_ranks

from evox_evogm.problems.failures import RankLost
from evox_evogm.problems.rank_group import RankGroup


def test_one_process_is_a_group_of_its_own():
    ranks = RankGroup()
    assert (ranks.rank, ranks.count) == (0, 1)
    assert ranks.exchange("value") == ["value"]
    assert ranks.from_rank_0(lambda: 5) == 5
    assert list(ranks.draw(3)) == [0, 1, 2]


def test_values_go_to_all_ranks_and_portions_to_one():
    def work():
        ranks = RankGroup()
        drawn = list(ranks.draw(10)) + [10 + number for number in ranks.draw(3)]
        return ranks.exchange(drawn), ranks.from_rank_0(lambda: ranks.rank)

    found = on_ranks(3, work)
    assert found == 3 * [found[0]]
    by_rank, first = found[0]
    assert first == 0
    assert sorted(sum(by_rank, [])) == list(range(13))


def test_an_error_of_rank_0_is_one_on_all_ranks():
    def fail():
        raise ValueError("no such thing")

    errors = on_ranks(2, lambda: RankGroup().from_rank_0(fail))
    assert errors == ["ValueError: no such thing", "ValueError: ValueError: no such thing"]


@pytest.mark.slow
def test_a_slow_rank_takes_fewer_portions():
    def work():
        ranks = RankGroup()
        ranks.exchange(None)
        count, start = 0, time.monotonic()
        for _ in ranks.draw(30):
            count += 1
            time.sleep(0.5 if ranks.rank == 1 else 0.05)
        return ranks.exchange((count, time.monotonic() - start))

    (counts, *_) = on_ranks(3, work)
    (first, _), (slow, seconds), (third, _) = counts
    assert first + slow + third == 30
    assert slow <= 4 < min(first, third)
    assert seconds < 4  # an equal share would take it 5 s


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_killed_or_hangs_is_named_within_the_timeout(how, tmp_path):
    def work():
        ranks = RankGroup(timeout=4)
        ranks.exchange(None)
        if ranks.rank == 2:
            (tmp_path / "pid").write_text(str(os.getpid()))
            os.kill(os.getpid(), how)
        start = time.monotonic()
        try:
            ranks.exchange(None)
        except RankLost as error:
            # The others of the test wait for this process in vain.
            (tmp_path / f"said {ranks.rank}").write_text(f"{error}\n{time.monotonic() - start}")
        os._exit(0)

    with pytest.raises(Exception):  # noqa: B017  the rank has no findings
        on_ranks(3, work, seconds=25)
    for rank in (0, 1):
        said, seconds = (tmp_path / f"said {rank}").read_text().splitlines()
        assert said == (
            f"rank {rank} of 3 lost rank 2: a rank has died or cannot be reached (it has given no "
            "sign of life for 4 s)"
        )
        assert float(seconds) < 15
