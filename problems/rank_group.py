"""The ranks of a process group, which share work and notice when one of them is gone.

- Values go from rank to rank by gloo, on the CPU, whatever the backend of the group is.
- Portions of work are handed out by a counter in the group's store.
- Every rank sends heartbeats to the store. Before an exchange the ranks wait for each other, and
  a rank that sends none for a while ends the wait.
"""

import pickle
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch.distributed as dist

from evox_evogm.problems.failures import RankLost, SharedFailure

Value = TypeVar("Value")
HEARTBEAT_EVERY = 2.0  # seconds
FIRST_HEARTBEAT = 1800.0  # seconds: a large base may take long to load
LONGEST_PAUSE = 0.05  # seconds between two looks at the store
PIECE = 2**22  # bytes of a value in a store, which takes at most 8 MiB at once
MORE, LAST = b"1", b"0"  # before a piece: whether others follow
RANKS_DIFFER = "ranks that measured for themselves might choose differently"
_numbers = count()  # of the groups of this process, which all ranks make in the same order


def in_process_group() -> bool:
    """Whether this process may be one of several ranks."""
    return dist.is_available() and dist.is_initialized()


class RankGroup:
    """The ranks of a process group; without one, or with one rank, this process alone.

    :param group: the ranks. Defaults to all of `torch.distributed`.
    :param timeout: seconds without a heartbeat after which a rank counts as gone.
    :param first_heartbeat: seconds to wait for the first one of a rank, which may still be loading.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        timeout: float = 30.0,
        first_heartbeat: float = FIRST_HEARTBEAT,
    ):
        self.group = group
        self.timeout = timeout
        self.first_heartbeat = first_heartbeat
        self._meetings = 0
        self._counters = 0
        self._store: dist.Store | None = None
        self._gloo: dist.ProcessGroup | None = None
        self._heartbeats: Heartbeats | None = None

    @property
    def rank(self) -> int:
        """The number of this rank."""
        return dist.get_rank(self.group) if in_process_group() else 0

    @property
    def count(self) -> int:
        """How many ranks there are."""
        return dist.get_world_size(self.group) if in_process_group() else 1

    def exchange(self, value: Value) -> list[Value]:
        """Give a value to all ranks.

        :param value: can be pickled; its tensors are on the CPU.
        :return: the values of all ranks, in their order.
        :raises RankLost: if a rank is gone.
        """
        if self.count == 1:
            return [value]
        self._meet()
        values: list[Any] = [None] * self.count
        try:
            dist.all_gather_object(values, value, group=self._gloo)
        except RuntimeError as error:
            raise self._lost("another rank", str(error)) from error
        return values

    def from_rank_0(self, make: Callable[[], Value]) -> Value:
        """Call a function on rank 0.

        :return: on every rank what it returned.
        :raises ValueError: on every rank, if it raised one there.
        :raises SharedFailure: on every rank, if it raised another error there.
        """
        made: Any = None
        failure: Exception | None = None
        text = None
        if self.rank == 0:
            try:
                made = make()
            except ValueError as error:
                failure, text = error, str(error)
            except Exception as error:
                failure, text = error, f"{type(error).__name__}: {error}"
        made, text, invalid = self.exchange((made, text, isinstance(failure, ValueError)))[0]
        if text is not None:
            raise ValueError(text) if invalid else SharedFailure(text)
        return made

    def draw(self, portions: int) -> Iterator[int]:
        """The portions that this rank takes, one after another, while any are left.

        :param portions: how many there are; on every rank the same.
        :return: numbers from 0. Over all ranks every number comes once.
        :raises RankLost: if a rank is gone.
        """
        if self.count == 1:
            yield from range(portions)
            return
        self._connect()
        self._counters += 1
        name = f"portions {self._counters}"
        while (number := self._add(name, 1) - 1) < portions:
            self._check()
            yield number

    def _connect(self) -> None:
        """Begin to send heartbeats, and make a group for values, unless that is done."""
        if self._gloo is not None:
            return
        if self._store is None:
            prefix = f"evogm {next(_numbers)} {dist.get_process_group_ranks(self.group)}"
            store = dist.distributed_c10d._get_default_store()
            self._store = dist.PrefixStore(prefix, store)
            self._send_heartbeats(self._store)
        self._wait_for_all()
        ranks = dist.get_process_group_ranks(self.group)
        limit = timedelta(seconds=2 * self.timeout)
        try:
            self._gloo = dist.new_group(
                ranks, timeout=limit, backend="gloo", use_local_synchronization=True
            )
        except RuntimeError as error:
            raise self._lost("another rank", str(error)) from error

    def _send_heartbeats(self, store: dist.Store) -> None:
        limits = self.timeout, self.first_heartbeat
        self._heartbeats = Heartbeats(store, self.rank, self.count, *limits)
        weakref.finalize(self, self._heartbeats.stop)

    def _meet(self) -> None:
        """Wait for all ranks."""
        self._connect()
        self._wait_for_all()

    def _wait_for_all(self) -> None:
        self._meetings += 1
        arrived = self._add("arrived", 1)
        pause = 1e-3
        while arrived < self._meetings * self.count:
            self._check()
            time.sleep(pause)
            pause = min(LONGEST_PAUSE, 1.2 * pause)
            arrived = self._add("arrived", 0)

    def _add(self, name: str, amount: int) -> int:
        """Add to a number in the store, and return the sum."""
        return self._ask(lambda store: store.add(name, amount))

    def _ask(self, operation: Callable[[dist.Store], Value]) -> Value:
        """The result of an operation of the store."""
        store = self._store
        assert store is not None, "the ranks are connected first"
        outcome: list[Any] = []

        def ask() -> None:
            try:
                outcome.append(operation(store))
            except Exception as error:
                outcome.append(error)

        # If the store's machine has vanished the call does not return.
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(self.timeout)
        if not outcome:
            raise self._lost("the store", f"it has not replied for {self.timeout:g} s")
        if isinstance(outcome[0], Exception):
            raise self._lost("the store", str(outcome[0])) from outcome[0]
        return outcome[0]

    def _check(self) -> None:
        """Raise if a rank is gone."""
        assert self._heartbeats is not None, "the ranks are connected first"
        silent = self._heartbeats.silent
        if silent is not None:
            has_begun = self._heartbeats.has_seen(silent)
            seconds = self.timeout if has_begun else self.first_heartbeat
            raise self._lost(f"rank {silent}", f"it has sent no heartbeat for {seconds:g} s")

    def _lost(self, what: str, reason: str) -> RankLost:
        lines = reason.splitlines() or ["no reason was given"]
        return RankLost(
            f"rank {self.rank} of {self.count} lost {what}: a rank has died or cannot be reached "
            f"({lines[0]})"
        )


class StoreGroup(RankGroup):
    """Ranks with a store and without a process group: values go through the store.

    :param store: that all ranks use.
    :param rank: of this process.
    :param count: of the ranks.

    It sends heartbeats from the beginning.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        count: int,
        timeout: float = 30.0,
        first_heartbeat: float = FIRST_HEARTBEAT,
    ):
        super().__init__(None, timeout, first_heartbeat)
        self._own_rank, self._own_count = rank, count
        self._written: list[str] = []  # by this rank, at the last meeting
        self._store = dist.PrefixStore("evogm", store)
        self._send_heartbeats(self._store)

    @property
    def rank(self) -> int:
        """The number of this rank."""
        return self._own_rank

    @property
    def count(self) -> int:
        """How many ranks there are."""
        return self._own_count

    def exchange(self, value: Value) -> list[Value]:
        """Give a value to all ranks, see `RankGroup.exchange`."""
        if self.count == 1:
            return [value]
        number = self._meetings  # the same on all ranks
        earlier = self._written
        self._written = self._write(f"value {number} {self.rank}", value)
        self._meet()
        for name in earlier:  # all have read the values of the meeting before
            self._delete(name)
        return [self._read(f"value {number} {rank}") for rank in range(self.count)]

    def _write(self, name: str, value: Any) -> list[str]:
        """Write a value in pieces, and return the names of these."""
        content = pickle.dumps(value)
        names: list[str] = []
        for first in range(0, len(content), PIECE):
            last = first + PIECE >= len(content)
            piece = (LAST if last else MORE) + content[first : first + PIECE]
            names.append(f"{name} {len(names)}")
            self._set(names[-1], piece)
        return names

    def _set(self, name: str, content: Any) -> None:  # torch declares texts, and takes bytes
        self._ask(lambda store: store.set(name, content))

    def _delete(self, name: str) -> None:
        self._ask(lambda store: store.delete_key(name))

    def _get(self, name: str) -> bytes:
        return self._ask(lambda store: store.get(name))

    def _read(self, name: str) -> Any:
        pieces = [self._get(f"{name} 0")]
        while pieces[-1][:1] == MORE:
            pieces.append(self._get(f"{name} {len(pieces)}"))
        return pickle.loads(b"".join(piece[1:] for piece in pieces))

    def _connect(self) -> None:
        """Nothing: it is done."""


class Heartbeats:
    """Sends heartbeats to a store, in a thread, and looks for those of the other ranks.

    :param store: that all ranks use.
    :param rank: of this process.
    :param count: of the ranks.
    :param timeout: seconds after which a rank that has sent one before is `silent`.
    :param first_heartbeat: seconds after which one that has sent none is.
    """

    def __init__(
        self, store: dist.Store, rank: int, count: int, timeout: float, first_heartbeat: float
    ):
        self.store = store
        self.rank = rank
        self.others = [other for other in range(count) if other != rank]
        self.timeout = timeout
        self.first_heartbeat = first_heartbeat
        self.silent: int | None = None
        self._counts = dict.fromkeys(self.others, 0)
        self._begun = time.monotonic()
        self._seen: dict[int, float] = {}  # when the last one came
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def has_seen(self, rank: int) -> bool:
        """Whether another rank has sent a heartbeat."""
        return rank in self._seen

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        pause = min(HEARTBEAT_EVERY, self.timeout / 5, self.first_heartbeat / 5)
        last_look = time.monotonic()
        while not self._ended.is_set():
            try:
                self.store.add(f"heartbeats {self.rank}", 1)
                counts = {rank: self.store.add(f"heartbeats {rank}", 0) for rank in self.others}
            except RuntimeError:
                return  # whoever uses the store next says that it is gone
            now = time.monotonic()
            if now - last_look > self.timeout:  # this process was stopped for a while
                self._seen = dict.fromkeys(self._seen, now)
                self._begun += now - last_look
            last_look = now
            for rank, number in counts.items():
                if number != self._counts[rank]:
                    self._counts[rank], self._seen[rank] = number, now
                elif rank not in self._seen:
                    if now - self._begun > self.first_heartbeat:
                        self.silent = rank
                elif now - self._seen[rank] > self.timeout:
                    self.silent = rank
            self._ended.wait(pause)
