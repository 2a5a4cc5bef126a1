"""Which proposals are worth an evaluation, as a Gaussian process on everything that was evaluated sees it.

A fitness is often a weighted sum of many outcomes that are known one by one: accuracy is the mean over examples of "the margin
of the right answer is above 0". Margins change smoothly where the fitness has steps, and one evaluation yields hundreds of
them. So the process models every outcome, all with one kernel (one Cholesky factor for hundreds of outputs), and the expected
fitness follows: sum_s w_s P(outcome_s > 0) for outcomes that count by their sign, sum_s w_s E[outcome_s] for the others. A
fitness without outcomes is one outcome of weight 1 that counts as it is.

Batches are picked one by one, each pick entered as if its mean had been observed (the "kriging believer", D. Ginsbourger et
al. 2010), by the expected fitness less a random multiple of its deviation; the first of a batch and every fifth after it,
like the answer in the end, by what is expected of its surroundings.
"""

from typing import NamedTuple

import torch
from evox.utils import register_vmap_op

from evox_evogm.algorithms.gaussian_process import GaussianProcess, Posterior
from evox_evogm.algorithms.vmap_operator import flatten_lead

ROWS = (
    256  # evaluations that the process knows at most, the best: a Cholesky factor takes their cube
)
OPTIMISM = (
    1.0  # deviation of the random multiple of a candidate's deviation that counts in its favour
)
SCORE_OPTIMISM = (
    2.0  # the same without outcomes: of a score alone the process knows less, and errs more
)
SQUASH = 2.0  # outcomes that count by their sign are bent beyond this multiple of the median of their sizes
BLUR = (
    0.3  # deviation, in the same unit, that is added to what decides about a sign: see `Surrogate`
)
CORRELATION = 0.3  # the share of their summed deviations that a sum of several outcomes is taken to deviate by
SCALES = (0.03, 0.1, 0.3)  # of the noise around good points, in half widths of the box
PARENTS = 10  # good points that noise is added to
AROUND, BETWEEN = 1000, 500  # candidates by noise, and on lines through two points
CLIMBS = 4  # times that the answer is sought around the best points found
SURROUNDINGS = 16  # points around an answer
RADIUS = 0.05  # their deviation from it, in half widths of the box
ANSWER_BLUR = 0.6  # `BLUR` of what is expected of them
ANSWER_EVERY = (
    5  # the first of so many picks in a batch is chosen as an answer is, by its surroundings
)
SHORTLIST = 500  # candidates from which a batch or an answer is picked
POOLS = 4  # of candidates for a batch, each grown around the best of those before
KEPT = 30  # candidates of a pool that the next one grows around, also where an answer is sought


class Outcomes(NamedTuple):
    """What the columns of fitness beyond the first are: `weights` (S,), at least 0, and `by_sign` (S,), whether an outcome
    counts by being above 0 (else as it is). As given by the problem, before a workflow changes their sign."""

    weights: torch.Tensor
    by_sign: torch.Tensor


def winsorize(fitness: torch.Tensor) -> torch.Tensor:
    """Fitness in which nothing is further above the median than the best is below it, what failed included.

    What is bad may be bad by orders of magnitude, which a process whose length scales are the same everywhere would take for
    all there is to know.

    :param fitness: an `(N, 1)` tensor, minimised, inf where an evaluation failed.
    """
    scored = fitness[fitness.isfinite()]
    if len(scored) == 0:
        return torch.zeros_like(fitness)
    return fitness.clamp(max=float(2 * scored.median() - scored.min()))


def expected_fitness(
    process: GaussianProcess,
    posterior: Posterior,
    weights: torch.Tensor,
    by_sign: torch.Tensor,
    blur: torch.Tensor | float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Expected fitness of C candidates, and by how much it may deviate, `(C,)` each.

    :param posterior: of these candidates, as the process sees them.
    :param weights: an `(S,)` tensor of weights of the outcomes as the process has them.
    :param by_sign: an `(S,)` tensor, see `Outcomes`.
    :param blur: a deviation of outcomes beside the process's own.
    """
    means, variance = posterior.means, posterior.variance[:, process.block_of]  # (C, S)
    spread = ((variance + process.noise) * process.scale**2 + blur**2).sqrt()  # (C, S)
    above = torch.special.ndtr(means / spread)
    known = (
        variance / (variance + process.noise)
    ).sqrt()  # the share of the spread that an evaluation ends
    deviation = torch.where(
        by_sign, (above * (1 - above)).sqrt() * known, variance.sqrt() * process.scale
    )
    share = CORRELATION if len(weights) > 1 else 1.0
    return torch.where(by_sign, above, means) @ weights, share * (deviation @ weights.abs())


class Surrogate:
    """The process with what its outcomes mean: it says what fitness to expect.

    Not of these examples alone: an answer that is right by a hair counts little more than one that is wrong by a hair, because
    of other examples it would be as often the other way round. Without that the search finds coefficients that put many
    examples just above 0, and loses on others what it gains on these (benchmarks/README.md). What is expected of the
    surroundings of a point, by which answers are chosen, is blurred more than what proposals are chosen by.

    :param points: an `(N, n)` tensor.
    :param fitness: an `(N, 1 + S)` tensor, minimised; the first column is the fitness, the others its outcomes.
    :param weights: an `(S,)` tensor, see `Outcomes`; empty without outcomes.
    :param by_sign: an `(S,)` tensor, see `Outcomes`.
    """

    def __init__(
        self,
        points: torch.Tensor,
        fitness: torch.Tensor,
        weights: torch.Tensor,
        by_sign: torch.Tensor,
    ):
        outcomes = fitness[:, 1:]
        self.by_examples = len(weights) > 0
        self.optimism = OPTIMISM if self.by_examples else SCORE_OPTIMISM
        if self.by_examples:
            # What failed is as bad as the worst that did not. A point with some outcomes was given up before the others.
            finite = outcomes.isfinite()
            outcomes = torch.where(finite, outcomes, torch.nan)
            worst = torch.where(finite, outcomes, -torch.inf).amax(0).nan_to_num(neginf=1.0)
            outcomes = torch.where(finite.any(1, keepdim=True), outcomes, worst)
            self.weights, self.by_sign = weights.double(), by_sign.bool()
            signed = outcomes[:, self.by_sign]
            typical = (
                signed.abs().nanmedian().clamp_min(1e-9) if signed.numel() else torch.tensor(1.0)
            )
            size, self.blur, self.answer_blur = (
                share * typical for share in (SQUASH, BLUR, ANSWER_BLUR)
            )
            outcomes = torch.where(self.by_sign, size * torch.tanh(outcomes / size), outcomes)
        else:
            outcomes, self.blur, self.answer_blur = winsorize(fitness[:, :1]), 0.0, 0.0
            self.weights, self.by_sign = torch.ones(1).double(), torch.zeros(1, dtype=torch.bool)
        self.process = GaussianProcess(points, outcomes)

    def expected_fitness(
        self, points: torch.Tensor, blur: torch.Tensor | float | None = None
    ) -> torch.Tensor:
        """What fitness to expect of `(C, n)` points, up to a constant, with another blur than for proposals if it is given."""
        return self._expect(self.process.posterior(points), blur)[0]

    def _expect(
        self, posterior: Posterior, blur: torch.Tensor | float | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        blur = self.blur if blur is None else blur
        return expected_fitness(self.process, posterior, self.weights, self.by_sign, blur)

    def expected_around(self, points: torch.Tensor) -> torch.Tensor:
        """The mean of what is expected of the surroundings of `(C, n)` points, or without outcomes of the points themselves.

        Another set of examples is like another place nearby: what is good here by a hair is not there.
        """
        if not self.by_examples:
            return self.expected_fitness(points)
        generator = torch.Generator().manual_seed(0)
        steps = RADIUS * torch.randn(
            SURROUNDINGS, points.shape[1], generator=generator, dtype=points.dtype
        )
        return torch.stack(
            [self.expected_fitness(points + step, self.answer_blur) for step in steps]
        ).mean(0)

    def optimum(self, points: torch.Tensor) -> torch.Tensor:
        """The `(n,)` point of whose surroundings most is expected, found around the best of `(N, n)` points."""
        generator = torch.Generator().manual_seed(0)
        best, merit = self._best_around(points)
        for _ in range(CLIMBS):
            candidates = candidates_around(best, merit, best[:0], generator)
            best, merit = self._best_around(torch.cat([best, candidates]))
        return best[0]

    def _best_around(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        points = points[self.expected_fitness(points).argsort()[:SHORTLIST]]
        merit, order = self.expected_around(points).sort()
        return points[order[:KEPT]], merit[:KEPT]

    def answer(
        self, points: torch.Tensor, outcomes: torch.Tensor, *, all_known: bool = True
    ) -> torch.Tensor:
        """The `(n,)` point to take: the optimum, or without outcomes the best of the evaluated ones.

        Where points were given up, too: what is known of the later outcomes comes from few points, and does not carry far. And
        where the worst were dropped: of good points alone the process does not learn where it gets worse.

        :param points: an `(N, n)` tensor, what was evaluated.
        :param outcomes: an `(N, S)` tensor, NaN where nothing was observed.
        :param all_known: whether these are all evaluations that were made.
        """
        known = outcomes.isfinite()
        complete = known.all(1)
        if all_known and outcomes.shape[1] and not (known.any(1) & ~complete).any():
            return self.optimum(points)
        expected = self.expected_around(points)
        return points[
            torch.where(complete, expected, torch.inf).argmin()
            if complete.any()
            else expected.argmin()
        ]

    def pick(
        self, candidates: torch.Tensor, count: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Row numbers `(count,)` of a batch out of `(C, n)` candidates, picked one by one out of a shortlist."""
        process = self.process
        posterior = process.posterior(candidates)
        expected, deviation = self._expect(posterior)
        shortlist = (expected - deviation).argsort()[: SHORTLIST + count]
        candidates = candidates[shortlist]
        means, variance, projected = posterior
        posterior = Posterior(
            means[shortlist],
            variance[shortlist],
            [whitened[:, shortlist] for whitened in projected],
        )
        around = self.expected_around(candidates) - self.expected_fitness(candidates)
        variance, picked = posterior.variance.clone(), []
        updates = [
            [] for _ in posterior.projected
        ]  # per block, what each pick explains of the candidates
        for number in range(count):
            expected, deviation = self._expect(posterior._replace(variance=variance))
            optimism = (
                self.optimism * torch.randn((), generator=generator, dtype=torch.float64).abs()
            )
            value = (
                expected - optimism * deviation + (around if number % ANSWER_EVERY == 0 else 0.0)
            )
            value[picked] = torch.inf
            choice = int(value.argmin())
            picked.append(choice)
            prior = process.covariance(candidates, candidates[choice : choice + 1])[:, 0]  # (C,)
            for block, (projected, mine) in enumerate(
                zip(posterior.projected, updates, strict=True)
            ):
                covariance = prior - projected.T @ projected[:, choice]
                for update in mine:
                    covariance = covariance - update * update[choice]
                mine.append(
                    covariance / (covariance[choice].clamp_min(1e-12) + process.noise).sqrt()
                )
                variance[:, block] = (variance[:, block] - mine[-1].square()).clamp_min(1e-9)
        return shortlist[picked]


def candidates_around(
    points: torch.Tensor, merit: torch.Tensor, moved: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """What might be evaluated next: noise around good points, points on lines through them, and what the generators say.

    :param points: an `(N, n)` tensor.
    :param merit: an `(N,)` tensor, expected fitness.
    :param moved: an `(M, n)` tensor of points that the generators have moved.
    :return: a `(C, n)` tensor inside [-1, 1].
    """
    dim, options = points.shape[1], {"generator": generator, "dtype": torch.float64}
    parents = points[merit.argsort()[:PARENTS]]

    def draw(source: torch.Tensor, count: int) -> torch.Tensor:
        return source[torch.randint(len(source), (count,), generator=generator)]

    scales = draw(torch.tensor(SCALES, dtype=torch.float64), AROUND)[:, None]
    around = draw(parents, AROUND) + scales * torch.randn(AROUND, dim, **options)
    start = draw(parents, BETWEEN)
    between = start + (torch.rand(BETWEEN, 1, **options) - 0.5) * (start - draw(points, BETWEEN))
    return torch.cat([around, between, moved]).clamp(-1, 1)


def propose_one(
    points: torch.Tensor,
    fitness: torch.Tensor,
    count: torch.Tensor,
    moved: torch.Tensor,
    weights: torch.Tensor,
    by_sign: torch.Tensor,
    seed: torch.Tensor,
    pop_size: int,
) -> torch.Tensor:
    """`propose` for one run."""
    if not int(count):
        raise ValueError("step: expected evaluated points, found none; call init_step first")
    with torch.device("cpu"):  # whatever the default is
        source = torch.Generator().manual_seed(int(seed))
        known, values = on_cpu(points[:count], fitness[:count])
        surrogate = Surrogate(known, values, weights.cpu(), by_sign.cpu())
        merit = surrogate.expected_fitness(known)
        parents, pools = (
            known,
            [candidates_around(known, merit, moved.detach().cpu().double(), source)],
        )
        while len(pools) < POOLS:
            expected = surrogate.expected_fitness(pools[-1])
            best = expected.argsort()[:KEPT]
            parents, merit = (
                torch.cat([parents, pools[-1][best]]),
                torch.cat([merit, expected[best]]),
            )
            pools.append(candidates_around(parents, merit, parents[:0], source))
        candidates = without_known(torch.cat(pools), known)
        return candidates[surrogate.pick(candidates, pop_size, source)].to(points)


def on_cpu(points: torch.Tensor, fitness: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A history in float64 on the CPU, with inf as the fitness of what failed."""
    failed = fitness == torch.finfo(fitness.dtype).max  # `archive.failed_as_worst`
    fitness = torch.where(failed, torch.inf, fitness)
    return points.detach().cpu().double(), fitness.detach().cpu().double()


def without_known(candidates: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Every candidate once, and none that is known: corners of the box come up often."""
    rows, place = torch.cat([known, candidates]).unique(dim=0, return_inverse=True)
    fresh = torch.ones(len(rows), dtype=torch.bool)
    fresh[place[: len(known)]] = False
    return rows[fresh]


def answer(
    points: torch.Tensor,
    fitness: torch.Tensor,
    weights: torch.Tensor,
    by_sign: torch.Tensor,
    *,
    all_known: bool = True,
) -> torch.Tensor:
    """The `(n,)` point to take after a search; parameters as of `propose`, for the rows in use, and of `Surrogate.answer`."""
    with torch.device("cpu"):
        known, values = on_cpu(points, fitness)
        surrogate = Surrogate(known, values, weights.cpu(), by_sign.cpu())
        return surrogate.answer(known, values[:, 1:], all_known=all_known).to(points)


OWN_DIMS = (
    2,
    2,
    0,
    2,
    1,
    1,
    0,
)  # dimensions of the tensors of `propose`; vmap adds others before them


def _batched(*arguments):
    *tensors, pop_size = arguments
    lead, flat = flatten_lead(tensors, OWN_DIMS)
    runs = zip(*flat, strict=True)
    return torch.stack([propose_one(*run, pop_size) for run in runs]).unflatten(0, lead)


def _batched_shape(*arguments):
    *tensors, pop_size = arguments
    lead, _ = flatten_lead(tensors, OWN_DIMS)
    return tensors[0].new_empty(*lead, pop_size, tensors[0].shape[-1])


def _shape(points, fitness, count, moved, weights, by_sign, seed, pop_size):
    return points.new_empty(pop_size, points.shape[1])


@register_vmap_op(
    name="evogm::propose",
    schema=(
        "(Tensor points, Tensor fitness, Tensor count, Tensor moved, Tensor weights, Tensor by_sign, Tensor seed, "
        "int pop_size) -> Tensor"
    ),
    fake_fn=_shape,
    vmap_fn=_batched,
    fake_vmap_fn=_batched_shape,
    vmap_out_dims=0,
    max_vmap_level=2,  # as `training.train`
)
def propose(
    points: torch.Tensor,
    fitness: torch.Tensor,
    count: torch.Tensor,
    moved: torch.Tensor,
    weights: torch.Tensor,
    by_sign: torch.Tensor,
    seed: torch.Tensor,
    pop_size: int,
) -> torch.Tensor:
    """A population of points that are worth an evaluation, as the process sees it; computed on the CPU in float64.

    :param points: an `(N, n)` tensor in units of the box, the history.
    :param fitness: an `(N, 1 + S)` tensor, minimised; the first column is the fitness, the others are its outcomes.
    :param count: a `()` tensor, rows in use.
    :param moved: an `(M, n)` tensor of further candidates.
    :param weights: an `(S,)` tensor; with `by_sign` the meaning of the outcomes, see `Outcomes`. Empty without outcomes.
    :param by_sign: an `(S,)` tensor.
    :param seed: a `()` tensor, a whole number.
    :param pop_size: P, how many points.
    :return: a `(P, n)` tensor inside [-1, 1].
    """
    return propose_one(points, fitness, count, moved, weights, by_sign, seed, pop_size)
