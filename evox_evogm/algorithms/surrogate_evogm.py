"""Search by a surrogate: for evaluations that are dear, an EvoX `Algorithm`.

Where EvoGM (T. Jiang et al., ICML 2026, arXiv 2605.29295) trains generators on all evaluations,
this search fits a Gaussian process to them, which chooses what is evaluated: surrogate-assisted
evolution with preselection. Beside the process no form of the generators could be told from none,
so they are not here (benchmarks/results/surrogate_parts.md).
"""

import math

import torch
from evox.core import Algorithm, Mutable, Parameter

from evox_evogm.algorithms.acquisition import select_batch, settings_number
from evox_evogm.algorithms.archive import Archive, append, empty
from evox_evogm.algorithms.blocks import check_blocks, count_coarse_points, spread_blocks
from evox_evogm.algorithms.checks import (
    check_box,
    check_fitness,
    check_initial_points,
    check_not_negative,
    check_outcomes,
)
from evox_evogm.algorithms.recommendation import better_of, recommend
from evox_evogm.algorithms.stopping import gain_by_surrogate
from evox_evogm.algorithms.surrogate import Outcomes, SurrogateSettings
from evox_evogm.algorithms.workflow_evaluate import WorkflowEvaluate

MAX_HALF_WIDTHS = 3.0  # to which a box grows
POP_SIZE = 3  # the surrogate learns from every population (benchmarks/results/surrogate_design.md)


class SurrogateEvoGM(Algorithm):
    """EvoGM with a Gaussian process in place of its generators, for evaluations that are expensive.

    `init_step` and every `step` evaluate `pop_size` points. The initial population is the average
    of the axes (1/n each) and points around it. A step fits the process to the history, draws
    thousands of candidates (around the best points, and between points), and evaluates the ones
    that the process ranks highest.

    The process uses at most 256 evaluations, the best. A step costs a fraction of a second.
    """

    def __init__(
        self,
        pop_size: int,
        lb: torch.Tensor,
        ub: torch.Tensor,
        *,
        outcomes: Outcomes | None = None,
        initial_points: torch.Tensor | None = None,
        blocks: int | None = None,
        box_growth: float = 0.0,
        settings: SurrogateSettings | None = None,
        device: torch.device | None = None,
    ):
        """Set up the search.

        :param pop_size: P, evaluations per step, at least 2. 3 is a good start.
        :param lb: an `(n,)` tensor, the point that -1 in every coordinate stands for.
        :param ub: an `(n,)` tensor, the point that +1 in every coordinate stands for.
        :param outcomes: what the further columns of fitness mean, if the problem gives `(P, 1 +
            S)`.
        :param initial_points: a `(K, n)` tensor in units of `lb` and `ub`, evaluated before all
            other points, P per step.
        :param blocks: how many blocks of equal length the coordinates form, such as the groups of
            an expert; n by default. The first points, `settings.coarse_points_per_block` times
            their number, have one value a block, and all later ones a value a coordinate.
            `initial_points` with more than one value a block end that at once.
        :param box_growth: the box opens by so many half widths at every side at which the best
            evaluated point stands, to at most `MAX_HALF_WIDTHS`. 0 keeps `lb` and `ub`.
        :param settings: of the surrogate and of the choice of points.
        :param device: where the search runs. Defaults to torch's default device. The process runs
            there in float64, or on the CPU if the device has none.
        :raises ValueError: if a setting is out of range.
        """
        super().__init__()
        device = torch.get_default_device() if device is None else torch.device(device)
        check_box(pop_size, lb, ub, least=2)
        if outcomes is None:
            outcomes = Outcomes(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
        outcomes = Outcomes(*check_outcomes(*outcomes))
        if initial_points is None:
            initial_points = lb.new_zeros(0, len(lb))
        check_initial_points(initial_points, lb, ub)
        check_not_negative(box_growth=box_growth)

        self.pop_size = pop_size
        self.dim = lb.shape[0]
        self.blocks = check_blocks(blocks, self.dim)
        self.dtype = lb.dtype
        self.settings = settings or SurrogateSettings()
        self._settings_number = settings_number(self.settings)
        self._workflow = WorkflowEvaluate()

        self.box_growth = Parameter(box_growth, self.dtype, device)

        self.center = Mutable((lb + ub) / 2, device=device)  # (n,) never changed
        self.half_width = Mutable((ub - lb) / 2, device=device)  # (n,) never changed
        sides = torch.stack([-torch.ones_like(lb), torch.ones_like(ub)])
        self.bounds = Mutable(sides, device=device)  # (2, n) in units of the box
        given = (initial_points.to(lb) - (lb + ub) / 2) / ((ub - lb) / 2)
        self.initial_points = Mutable(given, device=device)  # (K, n) in units of the box
        self.outcome_weights = Mutable(outcomes.weights.to(self.dtype), device=device)  # (S,)
        self.outcome_by_sign = Mutable(outcomes.by_sign, device=device)  # (S,)
        self.outcome_groups = Mutable(outcomes.groups, device=device)  # (S,)
        history = empty(max(self.settings.max_points, pop_size), self.dim, self.dtype, device)
        self.points = Mutable(history.points)  # (C, n) in units of the box, best first
        self.fitness = Mutable(history.fitness)  # (C,)
        known_outcomes = torch.zeros(len(history.points), len(outcomes.weights), dtype=self.dtype)
        self.outcomes = Mutable(known_outcomes, device=device)  # (C, S)
        self.count = Mutable(history.count)
        self.steps = Mutable(torch.zeros((), dtype=torch.int64, device=device))

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._settings_number = settings_number(self.settings)  # another process counts anew

    def init_step(self) -> None:
        """Evaluate the initial population."""
        self._workflow.evaluate = self.evaluate
        self._evaluate(self._initial_population())

    def step(self) -> None:
        """Learn from all evaluations, and evaluate the most promising of many candidates."""
        self._evaluate(self._select_batch())  # (P, n)

    def recommend(self, *, evaluate: bool = True) -> torch.Tensor:
        """The point to take when the search is over: the best predicted, not the best observed.

        The best score of many that were tried on few examples is in part luck. With outcomes it is
        the point with the best mean prediction over perturbed copies. If it was not evaluated yet,
        it is evaluated now, which is one evaluation more. An evaluated point whose outcomes then
        turn out to be better is taken in its place (`recommendation.better_of`).

        Without outcomes it is the evaluated point with the best predicted fitness. An evaluated
        point also where evaluations were pruned, or dropped from a full history, or if no workflow
        has called `init_step`, as after `load_state_dict`, of an algorithm that is not
        `workflow.algorithm`.

        For one run, not vmapped.

        :param evaluate: whether one evaluation more may be made. Otherwise an evaluated point is
            taken.
        :return: an `(n,)` tensor in units of `lb` and `ub`.
        :raises ValueError: before `init_step`.
        """
        count = int(self.count)
        if not count:
            raise ValueError(
                "recommend: expected evaluated points, found none; call init_step first"
            )
        points, history = self.points[:count], self._fitness_with_outcomes()[:count]
        outcomes = Outcomes(self.outcome_weights, self.outcome_by_sign, self.outcome_groups)
        bound = type(self).evaluate is not Algorithm.evaluate  # the copy that a workflow steps
        call = self.evaluate if bound else self._workflow.evaluate
        if not evaluate:
            call = None
        complete = int(self.steps) * self.pop_size <= len(self.points)
        point = recommend(
            points,
            history,
            outcomes,
            self.bounds,
            self.settings,
            blocks=self.blocks,
            evaluated_only=not complete or call is None,
        )
        if call is not None and not (points == point).all(1).any():
            fitness = call(self._to_box(point)[None]).to(history)[0]  # (1 + S,)
            point = better_of(point, fitness, points, history, outcomes, self.settings)
        return self._to_box(point)

    def recent_gain(self, points: torch.Tensor, fitness: torch.Tensor, last: int) -> float:
        """What the last evaluations have improved the recommended point by.

        :param points: an `(N, n)` tensor in units of `lb` and `ub`, what was evaluated, in order.
        :param fitness: an `(N, 1 + S)` tensor, minimised.
        :param last: how many evaluations, fewer than N.
        :return: a difference in fitness, by the prediction of the surrogate of all N; inf while
            some of the last evaluations belong to the first part, with one value a block.
        :raises ValueError: if there are not so many evaluations.
        """
        if len(points) - last < self.coarse_points:
            return math.inf
        outcomes = Outcomes(self.outcome_weights, self.outcome_by_sign, self.outcome_groups)
        in_box = (points.to(self.center) - self.center) / self.half_width
        return gain_by_surrogate(
            in_box, fitness, outcomes, self.bounds, last, self.settings, blocks=self.blocks
        )

    def record_step(self) -> dict[str, torch.Tensor]:
        """The state after a step.

        :return: `pop` (P, n), the best points as they were evaluated; `fit` (P,), their fitness,
            minimised.
        """
        return {
            "pop": self._to_box(self.points[: self.pop_size]),
            "fit": self.fitness[: self.pop_size],
        }

    @property
    def coarse_points(self) -> int:
        """How many of the first points have one value a block; 0 if a block is a coordinate."""
        return count_coarse_points(self.blocks, self.dim, self.settings.coarse_points_per_block)

    @property
    def box(self) -> torch.Tensor:
        """The lowest and the highest point, a `(2, n)` tensor: `lb` and `ub`, or wider."""
        return self._to_box(self.bounds)

    def _to_box(self, points: torch.Tensor) -> torch.Tensor:
        return self.center + self.half_width * points

    def _fitness_with_outcomes(self) -> torch.Tensor:
        return torch.cat([self.fitness[:, None], self.outcomes], 1)  # (C, 1 + S)

    def _evaluate(self, points: torch.Tensor) -> None:
        """Evaluate (P, n) points in units of the box, and append them to the history."""
        points = self._put_initial_points_first(points)
        fitness = self.evaluate(self._to_box(points)).to(self.points)  # (P,) or (P, 1 + S)
        outputs = len(self.outcome_weights)
        check_fitness(fitness, (self.pop_size, 1 + outputs) if outputs else (self.pop_size,))
        fitness = fitness.view(self.pop_size, 1 + outputs)
        history = Archive(torch.cat([self.points, self.outcomes], 1), self.fitness, self.count)
        new_rows = torch.cat([points, fitness[:, 1:]], 1)  # (P, n + S)
        rows, self.fitness, self.count = append(history, new_rows, fitness[:, 0])
        # Cloned: EvoX's wrapper of hyper-parameters takes no state in which tensors share memory.
        self.points, self.outcomes = rows[:, : self.dim].clone(), rows[:, self.dim :].clone()
        self.steps = self.steps + 1
        self._open_box()

    def _open_box(self) -> None:
        """Move every bound at which the best evaluated point stands."""
        lower, upper = self.bounds
        best = self.points[0]
        growth = self.box_growth
        lower = torch.where(best <= lower, (lower - growth).clamp_min(-MAX_HALF_WIDTHS), lower)
        upper = torch.where(best >= upper, (upper + growth).clamp_max(MAX_HALF_WIDTHS), upper)
        self.bounds = torch.stack([lower, upper])

    def _put_initial_points_first(self, points: torch.Tensor) -> torch.Tensor:
        """Replace points of the first steps by the `initial_points` that are still to evaluate."""
        given = len(self.initial_points)
        if not given:
            return points
        rows = torch.arange(self.pop_size, device=points.device) + self.steps * self.pop_size
        chosen = self.initial_points[rows.clamp(max=given - 1)]
        return torch.where((rows < given)[:, None], chosen, points)

    def _initial_population(self) -> torch.Tensor:
        """The average of the blocks and points around it, a (P, n) tensor."""
        axes = torch.eye(self.blocks, dtype=self.dtype, device=self.half_width.device)
        average = axes.mean(0)
        shape = self.pop_size - 1, self.blocks
        noise = torch.randn(shape, dtype=self.dtype, device=average.device)
        around = average + self.settings.initial_std / self.blocks**0.5 * noise
        population = torch.cat([average[None], around.clamp(-1, 1)])
        return spread_blocks(population, self.dim)

    def _select_batch(self) -> torch.Tensor:
        """The points that the surrogate ranks highest, a (P, n) tensor."""
        seed = torch.randint(2**62, (), device=self.points.device)
        return select_batch(
            self.points,
            self._fitness_with_outcomes(),
            self.count,
            self.bounds,
            self.outcome_weights,
            self.outcome_by_sign,
            self.outcome_groups,
            seed,
            self.pop_size,
            self.blocks,
            self._settings_number,
        )
