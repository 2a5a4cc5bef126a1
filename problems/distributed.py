"""A population evaluated by several processes, as an EvoX `Problem` around another one.

EvoX 1.4.0 has a way of its own, `StdWorkflow(enable_distributed=True)`, with two limits:

- The number of ranks has to divide the population. Otherwise its gather, which needs equal shares,
  fails with "invalid tensor size".
- Every rank is trusted to draw the same population.

A problem around the problem has neither limit, and leaves the workflow as it is.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from evox.core import Problem

from evox_evogm.problems.failures import AllFailed
from evox_evogm.problems.portions import PORTIONS
from evox_evogm.problems.rank_group import FIRST_HEARTBEAT, RankGroup
from evox_evogm.problems.shared_scoring import SharedScoring


class Share(NamedTuple):
    """The fitness of some points.

    :param fitness: on the CPU, a row per point.
    :param failure: why every one of them failed, or None.
    """

    fitness: torch.Tensor
    failure: str | None = None


class Reply(NamedTuple):
    """What a rank sends to the others.

    :param shares: by their numbers.
    :param error: the error that ended the evaluation, or None.
    """

    shares: Mapping[int, Share]
    error: str | None = None


class DistributedProblem(Problem):
    """Evaluate each population on all ranks of a process group.

    Every rank runs the whole search, with the same seed and its own copy of the problem. The points
    of rank 0 go to all ranks, and every rank gets all results.

    - **Merges**: with a `LoRAMergeProblem` the work is cut into portions by candidates and by
      examples. Ranks take one after another while any are left, so that a slow one takes fewer. How
      work is cut does not depend on the ranks: any number of them finds the same to the last bit,
      on devices of one kind and while no rank runs out of memory. Every rank knows all scores by
      example.
    - **Any other problem** is evaluated by points: every rank makes an equal share, or takes
      `rows_at_once` of them while any are left.

    What to know:

    - Leave `enable_distributed` of the workflow off.
    - With several ranks the problem cannot be vmapped, so `HPOProblemWrapper` cannot tune it.
    - A problem that draws random numbers draws the same ones for every share, as with
      `enable_distributed`.
    - A share of which every merge failed (`AllFailed`) is worst. The population has failed only if
      all shares have. Any other error ends the search on all ranks.
    - A rank that is gone ends the search on all others, see `timeout`.
    """

    def __init__(
        self,
        problem: Problem,
        group: dist.ProcessGroup | None = None,
        *,
        portions: int = PORTIONS,
        rows_at_once: int | None = None,
        timeout: float = 30.0,
        first_heartbeat: float = FIRST_HEARTBEAT,
    ):
        """Wrap a problem. All ranks wrap the same problems in the same order.

        :param problem: evaluates; on every rank the same.
        :param group: the ranks. Defaults to all of `torch.distributed`.
        :param portions: that the evaluation of merges is cut into, if they are not too small. Large
            work is cut into more.
        :param rows_at_once: how many points of any other problem a rank takes at once. By default
            all ranks have equal shares.
        :param timeout: seconds without a heartbeat after which a rank counts as gone.
        :param first_heartbeat: seconds to wait for the first one of a rank, which may still be
            loading its problem: 30 minutes.
        :raises ValueError: if a number is not positive.
        """
        super().__init__()
        for name, value in (("portions", portions), ("rows_at_once", rows_at_once)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, found {value}")
        for name, seconds in (("timeout", timeout), ("first_heartbeat", first_heartbeat)):
            if seconds <= 0:
                raise ValueError(f"{name}: expected seconds above 0, found {seconds}")
        self.problem = problem
        self.rows_at_once = rows_at_once
        self.ranks = RankGroup(group, timeout, first_heartbeat)
        self.sharing = SharedScoring(self.ranks, portions)

    @property
    def box(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The problem's `lb` and `ub`, two `(n,)` tensors, where it has them."""
        return self.problem.box

    @property
    def outcomes(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The problem's outcomes, three `(S,)` tensors, where it has them."""
        return self.problem.outcomes

    @property
    def on_evaluations(self) -> Callable | None:
        """What is called, on every rank, with the evaluations of merges."""
        return self.problem.on_evaluations

    @on_evaluations.setter
    def on_evaluations(self, on_evaluations: Callable | None) -> None:
        self.problem.on_evaluations = on_evaluations

    @property
    def load_history(self) -> Callable[[Iterable[Mapping]], None]:
        """The function of the problem that takes over earlier evaluations, where it has one."""
        return self.problem.load_history

    @torch.compiler.disable
    def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
        """Evaluate a population together.

        :param pop: a `(P, n)` tensor of points, on all ranks the same.
        :return: on all ranks the fitness of all P points, as the problem gives it.
        :raises AllFailed: if every one of the P points failed.
        :raises RankLost: if a rank is gone.
        :raises RuntimeError: if the evaluation of a rank has ended in an error, or if the
            populations differ.
        """
        scorer: Any = getattr(self.problem, "scorer", None)
        by_portions = hasattr(scorer, "sharing")
        if self.ranks.count == 1 and not by_portions:
            return self._evaluate_here(pop)
        populations = self.ranks.exchange(pop.detach().cpu())
        points = populations[0]
        for rank, population in enumerate(populations):
            check_same_points(population, points, rank)
        points = points.to(pop.device)
        if not by_portions:
            return self._evaluate_by_rows(points)
        scorer.sharing = self.sharing
        try:
            return self._evaluate_here(points)
        finally:
            scorer.sharing = None

    def _evaluate_by_rows(self, points: torch.Tensor) -> torch.Tensor:
        ranks, rank = self.ranks.count, self.ranks.rank
        numbers: Iterable[int]
        if self.rows_at_once is None:
            rows = torch.arange(len(points), device="cpu").tensor_split(ranks)
            numbers = [rank] if len(rows[rank]) > 0 else []
        else:
            rows = torch.arange(len(points), device="cpu").split(self.rows_at_once)
            numbers = self.ranks.draw(len(rows))
        shares, error, found = {}, None, None
        try:
            for number in numbers:
                shares[number] = self._evaluate_share(points[rows[number].to(points.device)])
        except Exception as exception:
            error, found = exception, f"{type(exception).__name__}: {exception}"
        # The other ranks wait for this one, so an error goes to them before it is raised here.
        replies = self.ranks.exchange(Reply(shares, found))
        if error is not None:
            raise error
        return join_replies(replies).to(points.device)

    def _evaluate_share(self, share: torch.Tensor) -> Share:
        try:
            return Share(self._evaluate_here(share).cpu())
        except AllFailed as all_failed:
            return Share(all_failed.fitness.cpu(), failure=all_failed.reason)

    def _evaluate_here(self, points: torch.Tensor) -> torch.Tensor:
        # Shares of different sizes must leave all ranks with the same random state.
        with torch.random.fork_rng([points.device] if points.is_cuda else []):
            return self.problem.evaluate(points)


def check_same_points(pop: torch.Tensor, points: torch.Tensor, rank: int) -> None:
    """Refuse a population that is not the one of rank 0.

    :param pop: the `(P, n)` population of a rank.
    :param points: the one of rank 0, on the CPU. Rounding differs between processors, so the two
        may differ by a hundredth; another seed differs by much more.
    :raises RuntimeError: if they differ.
    """
    tolerance = 1e-2 * float(points.nan_to_num().abs().max())
    same = pop.shape == points.shape and torch.allclose(
        pop.cpu(), points, rtol=1e-2, atol=tolerance, equal_nan=True
    )
    if not same:
        raise RuntimeError(
            f"rank {rank} has other points than rank 0: expected the same seed on every rank "
            "(torch.manual_seed) and a workflow with enable_distributed left off"
        )


def join_replies(replies: Sequence[Reply]) -> torch.Tensor:
    """The fitness of all points, in the order of their shares.

    :raises AllFailed: if every point failed.
    :raises RuntimeError: if the reply of a rank is an error.
    """
    shares: dict[int, Share] = {}
    for rank, reply in enumerate(replies):
        if reply.error is not None:
            raise RuntimeError(
                f"rank {rank} of {len(replies)} could not evaluate its share of the population: "
                f"{reply.error}"
            )
        shares |= reply.shares
    ordered = [shares[number] for number in sorted(shares)]
    fitness = torch.cat([share.fitness for share in ordered])
    failures = [share.failure for share in ordered]
    if None in failures:
        return fitness
    raise AllFailed(fitness, str(failures[0]))
