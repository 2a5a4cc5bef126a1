"""Ranks that share work, wait for each other, and notice when one is gone."""

import os
import signal
import socket
import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist
from ranks import on_ranks

from evox_evogm.problems.failures import RankLost
from evox_evogm.problems.rank_group import RankGroup, StoreGroup


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
    def fail(error):
        raise error

    def errors_of(error):
        return on_ranks(2, lambda: RankGroup().from_rank_0(lambda: fail(error)))

    assert errors_of(ValueError("no such thing")) == 2 * ["ValueError: no such thing"]
    assert errors_of(MemoryError("no room")) == 2 * ["SharedFailure: MemoryError: no room"]


def test_a_rank_that_never_sends_a_heartbeat_is_waited_for_until_a_limit():
    def work():
        ranks = RankGroup(first_heartbeat=0.5)
        return ranks.exchange(None) if ranks.rank == 0 else None

    lost, _ = on_ranks(2, work)
    end = "a rank has died or cannot be reached (it has sent no heartbeat for 0.5 s)"
    assert lost == f"RankLost: rank 0 of 2 lost rank 1: {end}"
    with pytest.raises(RankLost, match="rank 0 of 2 lost rank 1: .* for 0.5 s"):
        StoreGroup(dist.HashStore(), 0, 2, first_heartbeat=0.5).exchange(None)


def test_ranks_with_a_store_send_heartbeats_before_they_meet():
    store = dist.HashStore()
    other = StoreGroup(store, 1, 2)
    ranks = StoreGroup(store, 0, 2, timeout=0.5)
    time.sleep(0.2)
    other._heartbeats.stop()  # as if its process had ended
    with pytest.raises(RankLost, match="rank 0 of 2 lost rank 1: .* for 0.5 s"):
        ranks.exchange(None)


def test_values_that_a_store_does_not_take_at_once_are_exchanged_through_it():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = [os.urandom(9 * 2**20), "small"]  # a store of torch takes 8 MiB
    limit = timedelta(seconds=20)
    stores = []  # the first of them serves, and has to outlive both threads
    for rank in range(2):
        stores.append(dist.TCPStore("127.0.0.1", port, 2, rank == 0, limit, wait_for_workers=False))
    found = {}

    def work(rank):
        ranks = StoreGroup(stores[rank], rank, 2)
        found[rank] = ranks.exchange(values[rank]), ranks.exchange(rank), ranks.exchange(None)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == dict.fromkeys(range(2), (values, [0, 1], [None, None]))


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
            f"rank {rank} of 3 lost rank 2: a rank has died or cannot be reached (it has sent no "
            "heartbeat for 4 s)"
        )
        assert float(seconds) < 15
