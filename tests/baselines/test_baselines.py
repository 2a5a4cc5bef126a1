"""Each baseline against steps worked out by hand or by a plain loop, and in EvoX: eager, compiled, vmapped and compiled."""

import sys
from types import SimpleNamespace

import pytest
import torch
from evox import compile
from evox.algorithms import CSO, DE, PSO
from evox.core import Algorithm, Problem
from evox.problems.numerical import Sphere
from evox.workflows import EvalMonitor, StdWorkflow
from test_contract import run_algorithm, run_vmap_algorithm

from evox_evogm import EvoGM
from evox_evogm.baselines import (
    BayesianOptimization,
    ModelSwarms,
    PSOMerging,
    RandomSearch,
    first_population,
    known_points,
    start_from,
)
from evox_evogm.baselines.bayesian_optimization import trust_region


class Bowl(Problem):
    """Squared distance from a point, 0.7 in the first coordinate and -0.2 in the others."""

    def evaluate(self, pop):
        return ((pop - self.lowest(pop)) ** 2).sum(1)

    def lowest(self, pop):
        target = torch.full((pop.shape[-1],), -0.2, dtype=pop.dtype, device=pop.device)
        return torch.where(torch.arange(pop.shape[-1], device=pop.device) == 0, 0.7, target)


class FailingBowl(Bowl):
    """Cannot evaluate points with a negative first coordinate, or a large second one."""

    def evaluate(self, pop):
        fitness = torch.where(pop[:, 0] < 0, torch.nan, super().evaluate(pop))
        return torch.where(pop[:, 1] > 0.9, torch.inf, fitness)


def box(n, dtype=torch.float32):
    return -torch.ones(n, dtype=dtype), torch.ones(n, dtype=dtype)


def run(algorithm, steps, problem=None):
    """Evaluated points (steps + 1, P, n)."""
    workflow = StdWorkflow(algorithm, problem or Bowl(), EvalMonitor(full_sol_history=True))
    workflow.init_step()
    for _ in range(steps):
        workflow.step()
    return torch.stack(workflow.monitor.get_solution_history())


def best_fitness(points):
    return float(Bowl().evaluate(points.flatten(0, 1)).min())


def halves(*shape, dtype=None, device=None):
    """In place of `torch.rand`."""
    return torch.full(shape, 0.5, dtype=dtype, device=device)


# The known points


def test_known_points_are_base_experts_and_average():
    assert known_points(2).tolist() == [[0, 0], [1, 0], [0, 1], [0.5, 0.5]]
    assert known_points(3, torch.float64).dtype == torch.float64


@pytest.mark.parametrize("pop_size", [1, 2, 3, 4, 5, 9])
def test_the_first_population_is_that_of_evogm_and_the_base(pop_size):
    ours = first_population(pop_size, *box(3))
    theirs = EvoGM(max(2, pop_size), *box(3), proposal="paper")._first_points()[:pop_size]
    assert ours.shape == (pop_size, 3) and torch.equal(ours[:4], theirs[:4])
    assert pop_size < 5 or ours[4].tolist() == [0, 0, 0]


def test_uniform_points_of_the_first_population_fill_the_box():
    lb, ub = torch.tensor([2.0, -7.0]), torch.tensor([3.0, -5.0])
    points = first_population(500, lb, ub)[4:]
    assert (points >= lb).all() and (points <= ub).all()
    torch.testing.assert_close(points.mean(0), (lb + ub) / 2, atol=0.1, rtol=0)


@pytest.mark.parametrize("make", [PSO, CSO, DE, RandomSearch, ModelSwarms, PSOMerging])
def test_an_algorithm_starts_from_given_points(make):
    points = first_population(5, *box(3))
    kept = points.clone()
    algorithm = make(8, *box(3))
    drawn = algorithm.pop.clone()
    assert start_from(algorithm, points) is algorithm
    workflow = StdWorkflow(algorithm, Bowl(), EvalMonitor(full_sol_history=True))
    workflow.init_step()
    assert torch.equal(workflow.monitor.get_solution_history()[0], torch.cat([points, drawn[5:]]))
    workflow.step()  # CSO's writes into its population
    assert torch.equal(points, kept)


def test_personal_and_global_bests_follow_the_given_points():
    algorithm = start_from(PSO(4, *box(2)), known_points(2))
    assert torch.equal(algorithm.local_best_location, known_points(2))
    assert torch.equal(algorithm.global_best_location, torch.zeros(2))
    algorithm.pop[0] = 9.0
    assert torch.equal(algorithm.local_best_location, known_points(2))


@pytest.mark.parametrize(
    ("algorithm", "points", "message"),
    [
        (
            Algorithm(),
            torch.zeros(1, 2),
            r"algorithm: expected a population `pop` \(P, n\), found none in Algorithm",
        ),
        (
            RandomSearch(4, *box(3)),
            torch.zeros(2, 2),
            r"points: expected a tensor \(K, 3\), found \(2, 2\)",
        ),
        (RandomSearch(4, *box(3)), [[0.0] * 3], r"points: expected a tensor \(K, 3\), found \[\[0"),
        (RandomSearch(4, *box(3)), torch.zeros(5, 3), "points: expected 1 to 4 rows, found 5"),
        (RandomSearch(4, *box(3)), torch.zeros(0, 3), "points: expected 1 to 4 rows, found 0"),
    ],
)
def test_points_that_do_not_fit_are_refused(algorithm, points, message):
    with pytest.raises(ValueError, match=message):
        start_from(algorithm, points)


# Random search


def test_random_search_draws_from_the_box_after_the_known_points():
    lb, ub = torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([1.0, 0.5, 4.0])
    torch.manual_seed(1)
    points = run(RandomSearch(6, lb, ub), 3)
    torch.manual_seed(1)
    expected = [first_population(6, lb, ub), *(lb + (ub - lb) * torch.rand(6, 3) for _ in range(3))]
    assert torch.equal(points, torch.stack(expected))


# Model Swarms


def test_a_step_of_model_swarms_by_hand(monkeypatch):
    # (1, 0) is better than (0, 1): it is the global best, the other the worst; velocities lead from each to the other.
    algorithm = ModelSwarms(2, *box(2, torch.float64))
    monkeypatch.setattr(torch, "rand", halves)
    points = run(algorithm, 1)
    assert points[0].tolist() == [[1, 0], [0, 1]]
    # Of the better: 0.4 (-1, 1) + 0.3 (0, 0) + 0.3 (0, 0) + 0.3 (1, -1). Of the worse: 0.4 (1, -1) + 0 + 0.3 (1, -1) + 0.
    expected = torch.tensor(
        [[1 - 0.1 / 1.3, 0.1 / 1.3], [0.7 / 1.3, 1 - 0.7 / 1.3]], dtype=torch.float64
    )
    torch.testing.assert_close(points[1], expected)
    assert float(algorithm.step_length) == 0.95


def bowl(point):
    return (point[0] - 0.7) ** 2 + sum((x + 0.2) ** 2 for x in point[1:])


@pytest.mark.parametrize("patience", [10, 3])
def test_model_swarms_equals_a_plain_loop(patience):
    n, steps = 3, 12
    torch.manual_seed(8)
    algorithm = ModelSwarms(n, *box(n, torch.float64), patience=patience, step_length_factor=0.7)
    points = run(algorithm, steps)

    torch.manual_seed(8)
    x = [[float(k == i) for k in range(n)] for i in range(n)]
    offsets = torch.randint(1, n, (n,)).tolist()
    v = [[x[(i + offsets[i]) % n][k] - x[i][k] for k in range(n)] for i in range(n)]
    p, age, length, restarts = [list(row) for row in x], [0] * n, 1.0, 0
    g, w = list(min(x, key=bowl)), list(max(x, key=bowl))
    for step in range(1, steps + 1):
        draws = torch.rand(4, n, 1, dtype=torch.float64)
        for i in range(n):
            if age[i] >= patience / 2:
                x[i], v[i], restarts = list(p[i]), [0.0] * n, restarts + 1
            a, b, c, d = (
                float(draws[term, i, 0]) * f for term, f in enumerate((0.4, 0.3, 0.3, 0.3))
            )
            v[i] = [
                (
                    a * v[i][k]
                    + b * (p[i][k] - x[i][k])
                    + c * (g[k] - x[i][k])
                    + d * (x[i][k] - w[k])
                )
                / (a + b + c + d)
                for k in range(n)
            ]
            x[i] = [x[i][k] + length * v[i][k] for k in range(n)]
        length = max(0.1, 0.7 * length)
        torch.testing.assert_close(points[step], torch.tensor(x, dtype=torch.float64))
        for i in range(n):
            age[i] = 0 if bowl(x[i]) < bowl(p[i]) else age[i] + 1
            p[i] = min(p[i], list(x[i]), key=bowl)
            g, w = min(g, list(x[i]), key=bowl), max(w, list(x[i]), key=bowl)
    assert length == 0.1 and restarts > 0


def test_a_larger_swarm_is_filled_by_interpolations_of_two_experts():
    swarm = ModelSwarms(40, *box(4)).pop
    assert torch.equal(swarm[:4], torch.eye(4))
    torch.testing.assert_close(swarm.sum(1), torch.ones(40))
    assert ((swarm[4:] > 0).sum(1) == 2).all()
    assert torch.equal(ModelSwarms(3, *box(4)).pop, torch.eye(4)[:3])


@pytest.mark.parametrize("make", [ModelSwarms, PSOMerging])
def test_a_swarm_may_start_at_the_points_of_evogm(make):
    torch.manual_seed(2)
    swarm = make(9, *box(4), start="known").pop
    torch.manual_seed(2)
    assert torch.equal(swarm, first_population(9, *box(4)))


# PSO-Merging


def test_two_steps_of_pso_merging_by_hand(monkeypatch):
    algorithm = PSOMerging(3, *box(2, torch.float64))
    monkeypatch.setattr(torch, "rand", halves)
    points = run(algorithm, 2)
    # (1, 0) is best: 2 * 0.5 of the way to it from everywhere; then 0.2 of that step again.
    assert points[0].tolist() == [[0, 0], [1, 0], [0, 1]]
    assert points[1].tolist() == [[1, 0], [1, 0], [1, 0]]
    torch.testing.assert_close(
        points[2], torch.tensor([[1.2, 0], [1, 0], [1.2, -0.2]], dtype=torch.float64)
    )


def test_pso_merging_equals_a_plain_loop():
    n, pop_size, steps = 2, 5, 10
    torch.manual_seed(5)
    points = run(PSOMerging(pop_size, *box(n, torch.float64)), steps)

    torch.manual_seed(5)
    factors = (0.5 + torch.rand(2, 1, dtype=torch.float64)).flatten().tolist()
    x = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [factors[0], 0.0], [0.0, factors[1]]]
    torch.testing.assert_close(points[0], torch.tensor(x, dtype=torch.float64))
    v, p = [[0.0] * n for _ in x], [list(row) for row in x]
    g = list(min(x, key=bowl))
    for step in range(1, steps + 1):
        draws = torch.rand(2, pop_size, 1, dtype=torch.float64)
        for i in range(pop_size):
            r1, r2 = float(draws[0, i]), float(draws[1, i])
            v[i] = [
                0.2 * v[i][k] + 2 * r1 * (p[i][k] - x[i][k]) + 2 * r2 * (g[k] - x[i][k])
                for k in range(n)
            ]
            x[i] = [x[i][k] + v[i][k] for k in range(n)]
        torch.testing.assert_close(points[step], torch.tensor(x, dtype=torch.float64))
        for i in range(pop_size):
            p[i] = min(p[i], list(x[i]), key=bowl)
            g = min(g, list(x[i]), key=bowl)


# Those with their state in tensors, in EvoX

IN_TENSORS = {
    "random search": RandomSearch,
    "model swarms": ModelSwarms,
    "model swarms known": lambda *arguments: ModelSwarms(*arguments, start="known"),
    "pso-merging": PSOMerging,
    "pso-merging known": lambda *arguments: PSOMerging(*arguments, start="known"),
}
SHAPES = [(3, 7, torch.float32), (1, 2, torch.float64), (6, 4, torch.float64)]


@pytest.mark.parametrize("name", IN_TENSORS)
@pytest.mark.parametrize(("n", "pop_size", "dtype"), SHAPES)
def test_a_compiled_step_gives_the_points_of_the_eager_one(name, n, pop_size, dtype):
    records = []
    for compiled in (False, True):
        torch.manual_seed(3)
        workflow = StdWorkflow(IN_TENSORS[name](pop_size, *box(n, dtype)), Sphere())
        with torch._inductor.config.patch(
            fallback_random=True
        ):  # the random numbers of eager torch
            records.append(
                run_algorithm(workflow, compile(workflow.step) if compiled else workflow.step)
            )
    eager, compiled = records
    assert eager["pop"].shape == (pop_size, n) and eager["fit"].shape == (pop_size,)
    assert eager["pop"].dtype == eager["fit"].dtype == dtype
    for key in eager:
        torch.testing.assert_close(compiled[key], eager[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", IN_TENSORS)
def test_instances_run_vmapped_and_compiled_and_differ(name):
    workflow = StdWorkflow(IN_TENSORS[name](7, *box(3)), Sphere())
    state = run_vmap_algorithm(workflow)
    points, fitness = state["algorithm.pop"], state["algorithm.fit"]
    assert points.shape == (3, 7, 3) and fitness.shape == (3, 7)
    assert torch.isfinite(points).all() and len(points.unique(dim=0)) == 3


@pytest.mark.parametrize("name", IN_TENSORS)
def test_a_step_before_init_step_runs(name):
    # As in tuning with repeats by EvoX.
    workflow = StdWorkflow(IN_TENSORS[name](7, *box(3)), Bowl())
    for _ in range(3):
        workflow.step()
    assert torch.isfinite(workflow.algorithm.pop).all() and (workflow.algorithm.fit < 100).all()


@pytest.mark.parametrize("name", IN_TENSORS)
def test_failed_evaluations_count_as_worst(name):
    torch.manual_seed(0)
    algorithm = IN_TENSORS[name](8, *box(3))
    points = run(algorithm, 8, FailingBowl())
    assert torch.isfinite(points).all()
    assert FailingBowl().evaluate(points.flatten(0, 1)).isfinite().logical_not().any()
    assert algorithm.fit.isfinite().all()
    for best in (value for key, value in algorithm.named_buffers() if key == "global_best"):
        assert FailingBowl().evaluate(best[None]).isfinite()


@pytest.mark.parametrize("make", [RandomSearch, ModelSwarms, PSOMerging, BayesianOptimization])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, *box(2)), r"pop_size: expected a whole number of at least [12], found 0"),
        ((2.5, *box(2)), "pop_size: .* found 2.5"),
        ((4, [0.0], torch.ones(1)), r"lb: expected a tensor, found \[0.0\]"),
        (
            (4, torch.zeros(2), torch.ones(3)),
            r"lb and ub: expected two .* found \(2,\) torch.float32 and \(3,\)",
        ),
        (
            (4, torch.zeros(2, dtype=torch.long), torch.ones(2, dtype=torch.long)),
            "lb and ub: .* torch.int64",
        ),
        (
            (4, torch.zeros(2), torch.tensor([1.0, 0.0])),
            r"expected lb < ub .* found lb \[0.0, 0.0\], ub \[1.0, 0.0\]",
        ),
    ],
)
def test_sizes_and_boxes_that_cannot_be_are_refused(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(*arguments)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (ModelSwarms, {"start": "zero"}, "start: expected own or known, found 'zero'"),
        (ModelSwarms, {"repel": -0.1}, "repel: expected a number of at least 0, found -0.1"),
        (ModelSwarms, {"patience": float("nan")}, "patience: expected .* found nan"),
        (
            ModelSwarms,
            dict.fromkeys(("inertia", "cognitive", "social", "repel"), 0),
            "expected a positive number among",
        ),
        (PSOMerging, {"start": None}, "start: expected own or known, found None"),
        (PSOMerging, {"social": "2"}, "social: expected a number of at least 0, found '2'"),
        (
            BayesianOptimization,
            {"acquisition": "ucb"},
            "acquisition: expected thompson, turbo or qlogei, found 'ucb'",
        ),
        (
            BayesianOptimization,
            {"candidates": 3},
            "candidates: expected .* at least pop_size = 4, found 3",
        ),
    ],
)
def test_settings_out_of_range_are_refused(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(4, *box(2), **settings)


def test_known_points_of_no_experts_are_refused():
    with pytest.raises(ValueError, match="n: expected a whole number of at least 1, found 0"):
        known_points(0)


# Bayesian optimisation


def test_a_missing_botorch_is_named_before_the_search(monkeypatch):
    monkeypatch.setitem(sys.modules, "botorch", None)
    with pytest.raises(ModuleNotFoundError, match="botorch"):
        BayesianOptimization(4, *box(2))


@pytest.mark.parametrize("acquisition", ["thompson", "qlogei"])
def test_two_steps_of_bayesian_optimization_are_botorchs(acquisition):
    """The same model, acquisition and draws, by botorch alone."""
    botorch = pytest.importorskip("botorch")
    from botorch.models.transforms import Standardize
    from gpytorch.mlls import ExactMarginalLogLikelihood

    unit = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    torch.manual_seed(2)
    points = run(
        BayesianOptimization(5, *unit, acquisition=acquisition, candidates=64), 2, Sphere()
    )
    torch.manual_seed(2)
    known = first_population(5, *unit)
    for proposed in points[1:]:
        scores = -known.square().sum(1, keepdim=True)
        model = botorch.models.SingleTaskGP(known, scores, outcome_transform=Standardize(1))
        botorch.fit.fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        if acquisition == "thompson":
            seed = int(torch.randint(2**31, ()))
            pool = torch.quasirandom.SobolEngine(3, scramble=True, seed=seed).draw(
                64, dtype=torch.float64
            )
            torch.rand(64, 3)  # which coordinates change: of up to 20 all do
            sampling = botorch.generation.MaxPosteriorSampling(model, replacement=False)
            with torch.no_grad():
                expected = sampling(pool, num_samples=5)
        else:
            sampler = botorch.sampling.SobolQMCNormalSampler(torch.Size([64]))
            improvement = botorch.acquisition.qLogExpectedImprovement(
                model, float(scores.max()), sampler
            )
            bounds, options = torch.stack(unit), {"maxiter": 30}
            expected, _ = botorch.optim.optimize_acqf(
                improvement,
                bounds,
                5,
                num_restarts=2,
                raw_samples=64,
                options=options,
                sequential=True,
            )
        torch.testing.assert_close(proposed, expected.clamp(0, 1), rtol=1e-6, atol=1e-6)
        known = torch.cat([known, expected])


def test_bayesian_optimization_may_start_at_sobol_points():
    pytest.importorskip("botorch")
    lb, ub = torch.tensor([0.0, -3.0]), torch.tensor([2.0, -1.0])
    first = BayesianOptimization(4, lb, ub, start="own").pop
    quarters = ((first - lb) / (ub - lb) * 2).floor()  # one in each quarter of the box
    assert len(quarters.unique(dim=0)) == 4


@pytest.mark.parametrize("acquisition", ["thompson", "turbo", "qlogei"])
def test_bayesian_optimization_beats_random_search_from_the_same_start(acquisition):
    pytest.importorskip("botorch")
    steps = 2 if acquisition == "qlogei" else 4
    best = {}
    for make in (
        RandomSearch,
        lambda *arguments: BayesianOptimization(*arguments, acquisition=acquisition),
    ):
        torch.manual_seed(6)
        points = run(make(6, *box(4)), steps)
        torch.manual_seed(6)
        assert torch.equal(points[0], first_population(6, *box(4)))
        assert (points >= -1).all() and (points <= 1).all()
        assert len(points.flatten(0, 1).unique(dim=0)) == 6 * (steps + 1)
        best[make] = best_fitness(points)
    random, bayesian = best.values()
    assert bayesian < 0.5 * random


@pytest.mark.parametrize("acquisition", ["thompson", "turbo", "qlogei"])
def test_bayesian_optimization_repeats_itself_under_a_seed_in_a_box_of_any_units(acquisition):
    pytest.importorskip("botorch")
    lb, ub = (
        torch.tensor([0.0, -300.0], dtype=torch.float64),
        torch.tensor([2.0, -100.0], dtype=torch.float64),
    )
    runs = []
    for _ in range(2):
        torch.manual_seed(9)
        runs.append(
            run(
                BayesianOptimization(3, lb, ub, acquisition=acquisition, candidates=64), 2, Sphere()
            )
        )
    assert torch.equal(*runs)
    assert runs[0].dtype == torch.float64
    assert (runs[0][1:] >= lb).all() and (runs[0][1:] <= ub).all()


def test_the_trust_region_has_the_volume_of_a_cube_and_is_longer_where_the_score_changes_slowly():
    """Length scales 1 and 4, whose geometric mean is 2: sides .4 / 2 and .4 * 2, cut at the end of the unit cube."""
    pytest.importorskip("botorch")
    model = SimpleNamespace(covar_module=SimpleNamespace(lengthscale=torch.tensor([[1.0, 4.0]])))
    lower, upper = trust_region(model, torch.tensor([0.5, 0.5]), 0.4)
    torch.testing.assert_close(torch.stack([lower, upper]), torch.tensor([[0.4, 0.1], [0.6, 0.9]]))
    assert float((upper - lower).prod()) == pytest.approx(0.4**2)
    _, upper = trust_region(model, torch.tensor([0.95, 0.7]), 0.4)
    torch.testing.assert_close(upper, torch.tensor([1.0, 1.0]))


def test_thompson_sampling_draws_its_candidates_as_turbo_does():
    pytest.importorskip("botorch")
    from evox_evogm.baselines.bayesian_optimization import perturbations

    best = torch.full((100,), 2.0, dtype=torch.float64)
    perturbed = perturbations(best, 2000, 0.25, 0.75) != best
    torch.testing.assert_close(
        perturbed.double().mean(), torch.tensor(0.2, dtype=torch.float64), atol=0.01, rtol=0
    )
    points = perturbations(best[:3], 256, 0.25, torch.tensor([0.75, 0.5, 0.75]))
    assert (points >= 0.25).all() and (points <= torch.tensor([0.75, 0.5, 0.75])).all()
    torch.testing.assert_close(
        points.mean(0), torch.tensor([0.5, 0.375, 0.5]).double(), atol=0.01, rtol=0
    )


def test_the_trust_region_grows_with_successes_and_shrinks_with_failures():
    pytest.importorskip("botorch")
    algorithm = BayesianOptimization(
        2, *box(3)
    )  # shrinks after ceil(max(4, 3) / 2) = 2 failures in a row
    lengths = []
    for success in (False, True, False, False, True, True, True, True, True, True, *[False] * 4):
        algorithm._resize_trust_region(success)
        lengths.append(algorithm.length)
    assert lengths == [0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.8, 0.8, 0.8, 1.6, 1.6, 0.8, 0.8, 0.4]
    for _ in range(12):  # 0.4 to 0.00625, under 0.5^7
        algorithm._resize_trust_region(False)
    assert algorithm.length == 0.8


def test_bayesian_optimization_learns_from_failures_and_survives_a_population_of_them():
    pytest.importorskip("botorch")

    class LateBowl(FailingBowl):
        calls = 0

        def evaluate(self, pop):
            self.calls += 1
            return super().evaluate(pop) if self.calls > 1 else torch.full((len(pop),), torch.nan)

    torch.manual_seed(0)
    algorithm = BayesianOptimization(8, *box(3))
    points = run(algorithm, 4, LateBowl())
    assert torch.isfinite(points).all() and torch.isfinite(algorithm.fit).all()
    succeeded = [int(FailingBowl().evaluate(batch).isfinite().sum()) for batch in points]
    assert succeeded[4] > succeeded[1]


def test_a_compiled_workflow_runs_bayesian_optimization_uncompiled():
    pytest.importorskip("botorch")
    workflow = StdWorkflow(BayesianOptimization(4, *box(2), candidates=64), Bowl())
    workflow.init_step()
    compile(workflow.step)()
    assert len(workflow.algorithm.points) == 8
