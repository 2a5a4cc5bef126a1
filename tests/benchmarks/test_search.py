"""A case from the search to its files."""

import csv
import json

import pytest
import torch

from benchmarks.compare.cases import Case, default_pop_size
from benchmarks.compare.methods import METHODS, Method, box
from benchmarks.compare.runs import read_runs
from benchmarks.compare.search import commit, minibatches_of
from evox_evogm.baselines import RandomSearch

SOME = ["batches of 5", "RBF kernel", "beta 0"]
DESIGN = [name for name, method in METHODS.items() if method.group in ("design", "scores")]
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in DESIGN if name not in SOME]


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


def point_of(row):
    return torch.tensor([float(cell) for cell in row[3:]])


def test_cases_of_other_settings_have_other_files(tmp_path):
    settings = (
        {},
        {"budget": 4},
        {"pop_size": 10},
        {"control": "random"},
        {"resampled_dev": True},
        {"regmean": "tasks"},
        {"regmean": "prompts"},
        {"limit": True},
        {"regmean": "prompts", "keep_experts": True},
    )
    files = set()
    for setting in settings:
        files.add(Case("synthetic", "A", 0, n=2, **setting).file(tmp_path, ".csv"))
    assert len(files) == len(settings)


def test_the_files_of_a_case_are_named_after_its_setting(tmp_path):
    case = Case("synthetic", "A", 3, n=10, control="random", pop_size=7, resampled_dev=True)
    path = case.file(tmp_path, ".json").relative_to(tmp_path)
    assert str(path) == "synthetic/n10_160_random_P7_resampled/A_seed3.json"


def test_a_population_holds_all_known_points():
    assert [default_pop_size(n) for n in (2, 10, 18, 20, 64)] == [20, 20, 20, 22, 66]


@pytest.mark.parametrize("method", ["SurrogateEvoGM", "PSO two rounds", "CMA-ES"])
@pytest.mark.parametrize("center", [0.0, 0.5])
def test_a_case_writes_every_evaluation_and_the_scores_of_its_choice_and_runs_once(
    tmp_path, run_on_peak, peak, method, center
):
    pop_size = 10 if method == "PSO two rounds" else 20
    case = Case("synthetic", method, 3, n=2, budget=30, pop_size=pop_size)
    assert "dev" in run_on_peak(case, center)
    rows = read_rows(case.file(tmp_path, ".csv"))
    # Nine populations of three, and the recommended point: a tenth would leave no room for it.
    used = 28 if method == "SurrogateEvoGM" else 30
    assert [float(row[0]) for row in rows] == list(range(1, used + 1))
    for row in rows:
        assert float(row[1]) == pytest.approx(peak.dev(point_of(row)), abs=1e-4)
    result = json.loads(case.file(tmp_path, ".json").read_text())
    recommended = torch.tensor(result["recommended"])
    best = max(rows, key=lambda row: float(row[1]))  # of equals the first
    assert result["evaluations"] == used
    assert result["dev"] == pytest.approx(peak.dev(recommended))
    assert result["dev"] > 0.7
    assert result["test"] == pytest.approx(peak.test(recommended))
    on_test = result["test of the best on dev"]
    assert on_test == pytest.approx(peak.test(point_of(best)), abs=1e-4)
    curve = read_runs(case.file(tmp_path, "").parent).curves["best"].loc[method, 3]
    assert curve.iloc[-1] == pytest.approx(float(best[1]))
    assert run_on_peak(case).endswith(f"is there, from commit {commit()}")


def test_the_point_that_an_algorithm_recommends_is_scored(tmp_path, monkeypatch, run_on_peak):
    class Recommending(RandomSearch):
        def recommend(self):
            return torch.tensor([0.25, -0.5])

    method = Method(lambda n, p: Recommending(p, *box(n)))
    monkeypatch.setitem(METHODS, "Recommending", method)
    case = Case("synthetic", "Recommending", 0, n=2, budget=20)
    run_on_peak(case, center=0.5)
    result = json.loads(case.file(tmp_path, ".json").read_text())
    # As the problem has it, whose box is around .5.
    assert result["recommended"] == pytest.approx([0.75, 0.0])


@pytest.mark.parametrize("method", SOME + OTHERS)
def test_every_change_of_the_design_changes_the_search(tmp_path, run_on_peak, method):
    on_scores = METHODS[method].group == "scores"
    points = []
    for name in ("SurrogateEvoGM scores" if on_scores else "SurrogateEvoGM", method):
        budget = 100 if "64 rows" in method else 25
        case = Case("synthetic", name, 3, n=2, budget=budget)
        run_on_peak(case)
        points.append([row[3:] for row in read_rows(case.file(tmp_path, ".csv"))])
    assert points[0] != points[1]
    assert max(map(len, points)) <= budget


@pytest.mark.parametrize(
    ("method", "setting", "count"),
    [
        ("GradientSearch 40", {}, 4),
        ("GradientSearch by channel 15", {}, 6),
        ("GradientSearch", {}, 1),
        ("GradientSearch 40 on all questions", {}, 1),
        ("GradientSearch 40", {"dev_examples": 4}, 2),
    ],
)
def test_a_search_along_gradients_has_the_minibatches_that_its_budget_needs(method, setting, count):
    """13 tasks of 13 questions; 52 questions make two minibatches of 24 at least."""
    assert minibatches_of(Case("synthetic", method, 0, n=10, **setting), draw=0) == count
