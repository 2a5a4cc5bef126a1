"""A population evaluated by several processes, as an EvoX `Problem` around another one.

EvoX 1.4.0's own way, `StdWorkflow(enable_distributed=True)`, needs a population that the number of ranks divides (otherwise
"invalid tensor size": its gather wants equal shares), and trusts every rank to draw the same population. A problem around the
problem has neither limit, and leaves the workflow as it is.
"""

import torch
import torch.distributed as dist
from evox.core import Problem


class DistributedProblem(Problem):
    """Evaluate each population on all ranks of a process group, every rank its share.

    Every rank runs the whole search with the same seed and its own copy of the problem. Per evaluation of a population, rank
    0's (P, n) points go to all, and the (P,) or (P, M) fitness comes back to all; everything else stays where it is. Without
    a process group, or with one rank, the problem is evaluated here.

    Use it in a workflow with `enable_distributed` left off. With several ranks it cannot be vmapped, and so not be tuned by
    `HPOProblemWrapper`. `ResumableSearch` writes down the fitness of every point, not its scores by task: each rank knows
    only those of its share. A problem that draws random numbers draws the same ones for every share, as with
    `enable_distributed`.
    """

    def __init__(self, problem: Problem, group: dist.ProcessGroup | None = None):
        """Wrap a problem.

        :param problem: what evaluates a share; on every rank the same.
        :param group: the ranks. Defaults to all of `torch.distributed`.
        :raises ValueError: if the problem races merges.
        """
        super().__init__()
        if getattr(problem, "racing", None) is not None:
            raise ValueError(
                "problem: expected one without racing, which needs the merges of other ranks, found one with it"
            )
        self.problem = problem
        self.group = group

    @property
    def box(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the problem, where it has one."""
        return self.problem.box

    @property
    def outcomes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the problem, where it has them."""
        return self.problem.outcomes

    @torch.compiler.disable
    def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
        """Evaluate a population together.

        :param pop: a `(P, n)` tensor, on all ranks the same.
        :return: on all ranks the fitness of all P points, as the problem gives it.
        :raises RuntimeError: if a rank has died, if the evaluation of one has failed, or if the populations differ.
        """
        if not dist.is_initialized() or dist.get_world_size(self.group) == 1:
            return self._evaluate_share(pop)
        rank, ranks = dist.get_rank(self.group), dist.get_world_size(self.group)
        points = self._points_of_rank_0(pop)
        share, fitness, error = (
            torch.arange(len(points), device="cpu").tensor_split(ranks)[rank],
            None,
            None,
        )
        try:
            self._check_same(pop, points)
            if len(share):
                fitness = self._evaluate_share(points[share].to(pop.device)).cpu()
        except Exception as exception:
            # The others wait for this rank: they must hear of it before it ends.
            error = exception
        outcomes = self._gather(
            fitness if error is None else f"{type(error).__name__}: {error}", ranks
        )
        if error is not None:
            raise error
        for other, outcome in enumerate(outcomes):
            if isinstance(outcome, str):
                raise RuntimeError(
                    f"rank {other} of {ranks} could not evaluate its share of the population: {outcome}"
                )
        return torch.cat([outcome for outcome in outcomes if outcome is not None]).to(pop.device)

    def _evaluate_share(self, points: torch.Tensor) -> torch.Tensor:
        # A problem that draws random numbers must not put the ranks out of step.
        with torch.random.fork_rng([points.device] if points.is_cuda else []):
            return self.problem.evaluate(points)

    def _points_of_rank_0(self, pop: torch.Tensor) -> torch.Tensor:
        points = [pop.detach().cpu()]
        self._together(lambda: dist.broadcast_object_list(points, group=self.group, group_src=0))
        return points[0]

    def _check_same(self, pop: torch.Tensor, points: torch.Tensor) -> None:
        # Rounding differs between processors; another seed differs by much more.
        near = {
            "rtol": 1e-2,
            "atol": 1e-2 * float(points.nan_to_num().abs().max()),
            "equal_nan": True,
        }
        if pop.shape != points.shape or not torch.allclose(pop.cpu(), points, **near):
            raise RuntimeError(
                f"rank {dist.get_rank(self.group)} has other points than rank 0: expected the same seed on every rank "
                "(torch.manual_seed) and a workflow with enable_distributed left off"
            )

    def _gather(
        self, outcome: torch.Tensor | str | None, ranks: int
    ) -> list[torch.Tensor | str | None]:
        outcomes = [None] * ranks
        self._together(lambda: dist.all_gather_object(outcomes, outcome, group=self.group))
        return outcomes

    def _together(self, exchange) -> None:
        try:
            exchange()
        except RuntimeError as error:
            raise RuntimeError(
                f"rank {dist.get_rank(self.group)} lost the other ranks: one has died or cannot be reached ({error})"
            ) from error
