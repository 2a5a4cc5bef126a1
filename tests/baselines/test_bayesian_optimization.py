"""Bayesian optimisation beside botorch driven by hand; the trust region beside TuRBO's rules."""

import sys
from types import SimpleNamespace

import pytest
import torch
from bowls import Bowl, FailingBowl, bowl, box, evaluated_points
from evox import compile
from evox.problems.numerical import Sphere
from evox.workflows import StdWorkflow

from evox_evogm.baselines import BayesianOptimization, RandomSearch, initial_population
from evox_evogm.baselines.bayesian_optimization import (
    TrustRegion,
    perturbations,
    trust_region_bounds,
)

ACQUISITIONS = ["thompson", "turbo", "qlogei"]
OTHERS_SLOW = [ACQUISITIONS[0]]
for other in ACQUISITIONS[1:]:
    OTHERS_SLOW.append(pytest.param(other, marks=pytest.mark.slow))
UNIT = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)


@pytest.fixture
def botorch():
    return pytest.importorskip("botorch")


def test_a_missing_botorch_is_named_before_the_search(monkeypatch):
    monkeypatch.setitem(sys.modules, "botorch", None)
    with pytest.raises(ModuleNotFoundError, match="botorch"):
        BayesianOptimization(4, *box(2))


# What our algorithm calls, written out: the same model, acquisition and draws, by botorch alone.


def fit(botorch, points, scores):
    from botorch.models.transforms import Standardize
    from gpytorch.mlls import ExactMarginalLogLikelihood

    model = botorch.models.SingleTaskGP(points, scores, outcome_transform=Standardize(1))
    botorch.fit.fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def thompson(botorch, model, scores):
    seed = int(torch.randint(2**31, ()))
    engine = torch.quasirandom.SobolEngine(3, scramble=True, seed=seed)
    candidates = engine.draw(64, dtype=torch.float64)
    torch.rand(64, 3)  # which coordinates change: of up to 20 all do
    sampling = botorch.generation.MaxPosteriorSampling(model, replacement=False)
    with torch.no_grad():
        return sampling(candidates, num_samples=5)


def qlogei(botorch, model, scores):
    sampler = botorch.sampling.SobolQMCNormalSampler(torch.Size([64]))
    acquisition = botorch.acquisition.qLogExpectedImprovement(model, float(scores.max()), sampler)
    batch, _ = botorch.optim.optimize_acqf(
        acquisition,
        torch.stack(UNIT),
        5,
        num_restarts=2,
        raw_samples=64,
        options={"maxiter": 30},
        sequential=True,
    )
    return batch


@pytest.mark.parametrize(
    ("acquisition", "propose"),
    [("thompson", thompson), ("qlogei", qlogei)],
    ids=["thompson", "qlogei"],
)
@pytest.mark.lengthy
def test_two_steps_are_botorchs(botorch, acquisition, propose):
    torch.manual_seed(2)
    algorithm = BayesianOptimization(5, *UNIT, acquisition=acquisition, candidates=64)
    points = evaluated_points(algorithm, 2, Sphere())
    torch.manual_seed(2)
    history = initial_population(5, *UNIT)
    for batch in points[1:]:
        scores = -history.square().sum(1, keepdim=True)
        expected = propose(botorch, fit(botorch, history, scores), scores)
        torch.testing.assert_close(batch, expected.clamp(0, 1), rtol=1e-6, atol=1e-6)
        history = torch.cat([history, expected])


def test_it_may_start_at_sobol_points(botorch):
    lb = torch.tensor([0.0, -3.0])
    ub = torch.tensor([2.0, -1.0])
    first = BayesianOptimization(4, lb, ub, start="own").pop
    quarters = ((first - lb) / (ub - lb) * 2).floor()  # one in each quarter of the box
    assert len(quarters.unique(dim=0)) == 4


@pytest.mark.parametrize("acquisition", OTHERS_SLOW)
@pytest.mark.lengthy
def test_it_beats_random_search_from_the_same_start(botorch, acquisition):
    steps = 2 if acquisition == "qlogei" else 4
    best = []
    for make, settings in (
        (RandomSearch, {}),
        (BayesianOptimization, {"acquisition": acquisition}),
    ):
        torch.manual_seed(6)
        points = evaluated_points(make(6, *box(4), **settings), steps)
        torch.manual_seed(6)
        assert torch.equal(points[0], initial_population(6, *box(4)))
        points = points.flatten(0, 1)
        assert points.abs().max() <= 1
        assert len(points.unique(dim=0)) == 6 * (steps + 1)
        best.append(float(bowl(points).min()))
    random, bayesian = best
    assert bayesian < 0.5 * random


@pytest.mark.parametrize("acquisition", ACQUISITIONS)
def test_it_repeats_itself_under_a_seed_in_a_box_of_any_units(botorch, acquisition):
    lb = torch.tensor([0.0, -300.0], dtype=torch.float64)
    ub = torch.tensor([2.0, -100.0], dtype=torch.float64)
    runs = []
    for _ in range(2):
        torch.manual_seed(9)
        algorithm = BayesianOptimization(3, lb, ub, acquisition=acquisition, candidates=64)
        runs.append(evaluated_points(algorithm, 2, Sphere()))
    assert torch.equal(runs[0], runs[1])
    assert runs[0].dtype == torch.float64
    assert (runs[0][1:] >= lb).all()
    assert (runs[0][1:] <= ub).all()


def test_the_trust_region_is_longer_where_the_score_changes_slowly():
    # Length scales 1 and 4, whose geometric mean is 2: sides 0.4 / 2 and 0.4 * 2.
    model = SimpleNamespace(covar_module=SimpleNamespace(lengthscale=torch.tensor([[1.0, 4.0]])))
    lower, upper = trust_region_bounds(model, torch.tensor([0.5, 0.5]), 0.4)
    torch.testing.assert_close(lower, torch.tensor([0.4, 0.1]))
    torch.testing.assert_close(upper, torch.tensor([0.6, 0.9]))
    assert float((upper - lower).prod()) == pytest.approx(0.4**2)
    # It ends where the unit cube does.
    _, upper = trust_region_bounds(model, torch.tensor([0.95, 0.7]), 0.4)
    torch.testing.assert_close(upper, torch.tensor([1.0, 1.0]))


def test_a_fifth_of_100_coordinates_is_perturbed_as_in_turbo():
    best = torch.full((100,), 2.0, dtype=torch.float64)
    perturbed = perturbations(best, 2000, 0.25, 0.75) != best
    fraction = perturbed.double().mean()
    assert float(fraction) == pytest.approx(0.2, abs=0.01)


def test_perturbations_fill_their_bounds():
    best = torch.full((3,), 2.0, dtype=torch.float64)
    upper = torch.tensor([0.75, 0.5, 0.75])
    points = perturbations(best, 256, 0.25, upper)
    assert (points >= 0.25).all()
    assert (points <= upper).all()
    middle = torch.tensor([0.5, 0.375, 0.5], dtype=torch.float64)
    torch.testing.assert_close(points.mean(0), middle, atol=0.01, rtol=0)


def test_the_trust_region_grows_with_successes_and_shrinks_with_failures(botorch):
    # In 3 dimensions, with 2 evaluations a step: shrinks after ceil(max(4, 3) / 2) = 2 failures.
    region = BayesianOptimization(2, *box(3)).region
    lengths = []
    for outcome in "-+--++++++----":
        region = region.after(outcome == "+")
        lengths.append(region.length)
    assert lengths == [0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.8, 0.8, 0.8, 1.6, 1.6, 0.8, 0.8, 0.4]


def test_a_trust_region_that_is_too_small_becomes_large_again():
    region = TrustRegion(failures_to_shrink=1, length=0.5**7)
    assert region.after(False).length == 0.8


def test_steps_resize_the_trust_region(botorch):
    workflow = StdWorkflow(BayesianOptimization(4, *box(2), candidates=64), Bowl())
    workflow.init_step()
    workflow.step()
    region = workflow.algorithm.region
    assert region.successes == 1 or region.length == 0.4


def test_it_learns_from_failures_and_survives_a_population_of_them(botorch):
    class LateBowl(FailingBowl):
        calls = 0

        def evaluate(self, pop):
            self.calls += 1
            if self.calls == 1:
                return torch.full((len(pop),), torch.nan)
            return super().evaluate(pop)

    torch.manual_seed(0)
    algorithm = BayesianOptimization(8, *box(3))
    points = evaluated_points(algorithm, 4, LateBowl())
    assert torch.isfinite(points).all()
    assert torch.isfinite(algorithm.fit).all()
    succeeded = [int(FailingBowl().evaluate(batch).isfinite().sum()) for batch in points]
    assert succeeded[4] > succeeded[1]


def test_a_compiled_workflow_runs_it_uncompiled(botorch):
    workflow = StdWorkflow(BayesianOptimization(4, *box(2), candidates=64), Bowl())
    workflow.init_step()
    compile(workflow.step)()
    assert len(workflow.algorithm.points) == 8
