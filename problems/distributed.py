"""A population evaluated by several processes, as an EvoX `Problem` around another one.

EvoX 1.4.0 has a way of its own, `StdWorkflow(enable_distributed=True)`, with two limits:

- The number of ranks has to divide the population. Otherwise its gather, which needs equal shares,
  fails with "invalid tensor size".
- Every rank is trusted to draw the same population.

A problem around the problem has neither limit, and leaves the workflow as it is.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from evox.core import Problem

from evox_evogm.problems.failures import AllFailed


class Reply(NamedTuple):
    """What a rank sends of its share to the others."""

    fitness: torch.Tensor | None = None
    """On the CPU, a row per point; None if the share is empty or its evaluation ended in an error.
    """
    failure: str | None = None
    """Why every point of the share failed, or None."""
    error: str | None = None
    """The error that ended the evaluation, or None."""


class DistributedProblem(Problem):
    """Evaluate each population on all ranks of a process group, every rank its share.

    Every rank runs the whole search, with the same seed and its own copy of the problem. For every
    population the ranks exchange two things:

    - the `(P, n)` points of rank 0, which go to all ranks;
    - the `(P,)` or `(P, M)` fitness, of which every rank makes a share and gets the whole.

    Without a process group, or with one rank, the problem is evaluated here.

    What to know:

    - Leave `enable_distributed` of the workflow off.
    - With several ranks the problem cannot be vmapped, so `HPOProblemWrapper` cannot tune it.
    - `ResumableSearch` writes down the fitness of every point, not its scores by task: each rank
      has only those of its share.
    - A problem that draws random numbers draws the same ones for every share, as with
      `enable_distributed`.
    - A share of which every merge failed (`AllFailed`) is worst. The population has failed only if
      all shares have. Any other error ends the search on all ranks.
    """

    def __init__(self, problem: Problem, group: dist.ProcessGroup | None = None):
        """Wrap a problem.

        :param problem: evaluates a share; on every rank the same.
        :param group: the ranks. Defaults to all of `torch.distributed`.
        :raises ValueError: if the problem races merges.
        """
        super().__init__()
        if getattr(problem, "racing", None) is not None:
            raise ValueError(
                "problem: expected one without racing, which needs the merges of other ranks, "
                "found one with it"
            )
        self.problem = problem
        self.group = group

    @property
    def box(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The problem's `lb` and `ub`, two `(n,)` tensors, where it has them."""
        return self.problem.box

    @property
    def outcomes(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The problem's outcomes, three `(S,)` tensors, where it has them."""
        return self.problem.outcomes

    @torch.compiler.disable
    def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
        """Evaluate a population together.

        :param pop: a `(P, n)` tensor, on all ranks the same.
        :return: on all ranks the fitness of all P points, as the problem gives it.
        :raises AllFailed: if every one of the P points failed.
        :raises RuntimeError: if a rank has died, if the evaluation of one has ended in an error, or
            if the populations differ.
        """
        ranks = dist.get_world_size(self.group) if dist.is_initialized() else 1
        if ranks == 1:
            return self._evaluate_here(pop)
        points = self._points_of_rank_0(pop)
        reply, error = Reply(), None
        try:
            check_same_points(pop, points, self._rank)
            share = points[rows_of_rank(self._rank, ranks, len(points))]
            if len(share) > 0:
                reply = self._evaluate_share(share.to(pop.device))
        except Exception as exception:
            error = exception
            reply = Reply(error=f"{type(error).__name__}: {error}")
        # The other ranks wait for this one, so an error goes to them before it is raised here.
        replies = self._gather(reply, ranks)
        if error is not None:
            raise error
        return join_replies(replies).to(pop.device)

    @property
    def _rank(self) -> int:
        return dist.get_rank(self.group)

    def _evaluate_share(self, share: torch.Tensor) -> Reply:
        try:
            return Reply(self._evaluate_here(share).cpu())
        except AllFailed as all_failed:
            return Reply(all_failed.fitness.cpu(), failure=all_failed.reason)

    def _evaluate_here(self, points: torch.Tensor) -> torch.Tensor:
        # Shares of different sizes must leave all ranks with the same random state.
        with torch.random.fork_rng([points.device] if points.is_cuda else []):
            return self.problem.evaluate(points)

    def _points_of_rank_0(self, pop: torch.Tensor) -> torch.Tensor:
        points = [pop.detach().cpu()]
        self._exchange(lambda: dist.broadcast_object_list(points, group=self.group, group_src=0))
        return points[0]

    def _gather(self, reply: Reply, ranks: int) -> list[Reply]:
        """The replies of all ranks, in their order."""
        replies = [Reply()] * ranks
        self._exchange(lambda: dist.all_gather_object(replies, reply, group=self.group))
        return replies

    def _exchange(self, exchange: Callable[[], None]) -> None:
        try:
            exchange()
        except RuntimeError as error:
            raise RuntimeError(
                f"rank {self._rank} lost the other ranks: one has died or cannot be reached "
                f"({error})"
            ) from error


def rows_of_rank(rank: int, ranks: int, count: int) -> torch.Tensor:
    """The rows of a rank's share: the first ranks have one more where the ranks do not divide."""
    return torch.arange(count, device="cpu").tensor_split(ranks)[rank]


def check_same_points(pop: torch.Tensor, points: torch.Tensor, rank: int) -> None:
    """Refuse a population that is not the one of rank 0.

    :param pop: the `(P, n)` population of this rank.
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
    """The fitness of all points.

    :raises AllFailed: if every point failed.
    :raises RuntimeError: if the reply of a rank is an error.
    """
    shares, failures = [], []
    for rank, reply in enumerate(replies):
        if reply.error is not None:
            raise RuntimeError(
                f"rank {rank} of {len(replies)} could not evaluate its share of the population: "
                f"{reply.error}"
            )
        if reply.fitness is not None:
            shares.append(reply.fitness)
            failures.append(reply.failure)
    fitness = torch.cat(shares)
    if None in failures:
        return fitness
    raise AllFailed(fitness, str(failures[0]))
