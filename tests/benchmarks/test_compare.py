"""The protocol of `benchmarks/compare.py`: budgets, what is kept, and how it is read again."""

import csv
import json
from types import SimpleNamespace

import compare
import compare_report
import pytest
import torch
from compare import Case, Recorder, Spent, best_rows, cases_of
from compare_methods import METHODS, Method, box
from compare_report import print_changes, print_control
from compare_runs import corrected_tests, holm, mean_ranks, read_runs
from evox.core import Problem
from evox.problems.numerical import Sphere
from evox.workflows import StdWorkflow
from small_level import make_task

from evox_evogm.algorithms import evogm, surrogate
from evox_evogm.algorithms.generators import generate
from evox_evogm.baselines import RandomSearch
from evox_evogm.problems import Racing


class Asking(Problem):
    """Scores the first coordinate, which is also the share of ten outcomes that are asked."""

    def __init__(self, racing=None):
        super().__init__()
        self.racing, self.box = racing, (torch.tensor([-1.0]), torch.tensor([1.0]))

    def evaluate(self, pop):
        asked = torch.arange(10) < (10 * pop[:, :1]).round()
        outcomes = torch.where(asked, 1.0, torch.nan) if self.racing else torch.ones(len(pop), 10)
        return torch.cat([pop[:, :1], outcomes], 1)


def points(*values):
    return torch.tensor(values)[:, None]


def test_the_last_population_is_cut_where_the_budget_is_spent():
    recorder = Recorder(Asking(), 5, outcomes=False)
    assert recorder.evaluate(points(0.1, 0.2, 0.3)).tolist() == pytest.approx([0.1, 0.2, 0.3])
    with pytest.raises(Spent):
        recorder.evaluate(points(0.9, 0.5, 0.7))
    assert [(row.budget_used, round(row.score, 1)) for row in recorder.rows] == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.3),
        (4, 0.9),
        (5, 0.5),
    ]
    torch.testing.assert_close(best_rows(recorder.rows, 2), points(0.9, 0.5))


def test_with_racing_the_share_of_examples_that_was_asked_is_spent():
    recorder = Recorder(Asking(Racing()), 2, outcomes=True)
    recorder.evaluate(points(1.0, 0.3))
    with pytest.raises(Spent):
        recorder.evaluate(points(0.4, 0.2, 0.5))
    assert [round(row.budget_used, 3) for row in recorder.rows] == [1.0, 1.3, 1.7, 1.9]


def test_a_basis_is_applied_before_points_are_evaluated_and_kept():
    recorder = Recorder(Asking(), 5, outcomes=True)
    recorder.basis = torch.tensor([[0.5]])
    assert recorder.evaluate(points(0.8)).shape == (1, 11)
    assert recorder.rows[0].point == pytest.approx([0.4])


def test_files_are_read_as_the_best_score_after_every_evaluation_that_was_spent(tmp_path):
    for seed in (0, 100):  # seeds from 100 on were for trying things out
        (tmp_path / f"A_seed{seed}.json").write_text(json.dumps({"method": "A", "seed": seed}))
        with (tmp_path / f"A_seed{seed}.csv").open("w", newline="") as file:
            rows = [
                ["spent", "score", "seconds"],
                [1, 0.2, 5],
                [1.25, 0.1, 6],
                [2.25, 0.4, 7],
                [3, "-inf", 8],
            ]
            csv.writer(file).writerows(rows)
    (run,) = read_runs(tmp_path)["A"]
    assert run.best.tolist() == [0.2, 0.2, 0.4] and run.seconds.tolist() == [5, 6, 8]


def test_holm_multiplies_the_smallest_by_the_number_of_tests_and_never_decreases():
    assert holm({"a": 0.03, "b": 0.01, "c": 0.02}) == pytest.approx(
        {"b": 0.03, "c": 0.04, "a": 0.04}
    )
    assert holm({"a": 0.9, "b": 0.6}) == {"b": 1.0, "a": 1.0}


class Result:
    def __init__(self, seed, dev):
        self.result = {"seed": seed, "dev": 0.0}  # of the answer, which need not be the best
        self.best = [0.0, dev]


def test_ranks_are_means_over_the_seeds_that_all_have_and_equals_share():
    pytest.importorskip("scipy")
    runs = {
        "a": [Result(0, 0.5), Result(1, 0.3), Result(2, 0.9)],
        "b": [Result(0, 0.4), Result(1, 0.3)],
    }
    assert mean_ranks(runs, "dev") == {"a": (1 + 1.5) / 2, "b": (2 + 1.5) / 2}


def test_without_a_seed_that_all_have_there_are_no_ranks():
    pytest.importorskip("scipy")
    assert mean_ranks({"a": [Result(0, 0.5)], "b": [Result(1, 0.4)]}, "dev") == {}


def test_what_never_varies_differs_or_does_not():
    pytest.importorskip("scipy")
    runs = {
        name: [Result(seed, value) for seed in range(2)]
        for name, value in {"a": 0.5, "b": 0.5, "c": 0.4}.items()
    }
    assert corrected_tests(runs, "a", "dev") == {"b": 1.0, "c": 0.0}


def test_cases_of_other_settings_have_other_files():
    settings = (
        {},
        {"budget": 4},
        {"pop_size": 10},
        {"control": "random"},
        {"own_questions": True},
        {"regmean": True},
    )
    assert len({Case("small", "A", 0, n=2, **more).path for more in settings}) == len(settings)


def test_a_draw_of_questions_is_always_the_same_other_draws_differ_and_no_dev_question_is_in_test():
    def asked(split, draw):
        return {example.prompt for example in make_task("R", split, 13, draw).examples}

    assert asked("dev", 3) == asked("dev", 3)
    assert len({frozenset(asked("dev", draw)) for draw in (None, 3, 4)}) == 3
    assert not asked("dev", 3) & (asked("test", 3) | asked("test", 4))


def test_welch_is_scipys_and_leaves_out_what_ran_once():
    stats = pytest.importorskip("scipy.stats")
    ours, theirs = [0.5, 0.6, 0.8], [0.1, 0.3, 0.2, 0.2]
    runs = {
        "ours": [Result(i, value) for i, value in enumerate(ours)],
        "theirs": [Result(i, value) for i, value in enumerate(theirs)],
        "once": [Result(0, 0.5)],
    }
    p_value = stats.ttest_ind(ours, theirs, equal_var=False).pvalue
    assert corrected_tests(runs, "ours", "dev") == {"theirs": pytest.approx(p_value)}


def test_the_paired_test_is_scipys_on_the_seeds_that_both_have():
    stats = pytest.importorskip("scipy.stats")
    runs = {
        "ours": [Result(i, value) for i, value in enumerate((0.5, 0.6, 0.8))],
        "theirs": [Result(i, value) for i, value in ((1, 0.3), (2, 0.7), (3, 0.9))],
    }
    p_value = stats.ttest_rel([0.6, 0.8], [0.3, 0.7]).pvalue
    assert corrected_tests(runs, "ours", "dev", paired=True) == {"theirs": pytest.approx(p_value)}


@pytest.mark.parametrize("paired", [False, True])
def test_a_change_is_shown_beside_what_it_changes_on_the_seeds_that_both_have(capsys, paired):
    stats = pytest.importorskip("scipy.stats")
    runs = {
        "EvoGM": [Result(i, value) for i, value in enumerate((0.5, 0.6, 0.8))],
        "no generators": [Result(i, value) for i, value in ((1, 0.3), (2, 0.7))],
    }
    for mine in runs.values():
        for run in mine:
            run.result["test"] = run.best[-1] - 0.1
    print_changes(runs, ["no generators"], "EvoGM", "part", paired=paired)
    header, _, row = capsys.readouterr().out.strip().splitlines()
    assert row.startswith("| no generators | 2 | 2 | 0.500 | 0.700 | 0.400 | 0.600 |")
    ours, theirs = [0.6, 0.8], [0.3, 0.7]
    test = (
        stats.ttest_rel(ours, theirs) if paired else stats.ttest_ind(ours, theirs, equal_var=False)
    )
    assert f"| {test.pvalue:.1g} |" in row and ("paired p dev" in header) == paired


def test_a_control_improves_only_where_its_gain_is_more_than_chance(capsys):
    stats = pytest.importorskip("scipy.stats")
    runs = {"A": [Result(0, 0), Result(1, 0)], "B": [Result(0, 0), Result(1, 0)]}
    runs["C"] = runs["B"][:1]
    for name, scores in {"A": (0.30, 0.34), "B": (0.45, 0.47)}.items():
        for run, score in zip(runs[name], scores, strict=True):
            run.result["test"] = score
    print_control(runs, {"base": 0.25, "Model Soup": 0.3})
    first, second, third = capsys.readouterr().out.strip().split("\n\n")
    assert "A does not improve over Model Soup on test: 0.020" in first
    assert "B IMPROVES over Model Soup on test: 0.160" in second
    assert "C ran once" in third
    one = stats.ttest_1samp([0.15, 0.17], 0, alternative="greater").pvalue
    assert f"p {2 * one:.2g}." in second  # Holm, of two


def test_what_is_not_a_method_is_refused_with_the_list():
    class Arguments:
        methods, group, n, budget, pop_size, threads, level, seeds, first_seed = (
            ["EvoGN"],
            "search",
            2,
            4,
            2,
            1,
            "small",
            1,
            0,
        )
        own_questions = regmean = False

    with pytest.raises(SystemExit, match="methods: expected some of 'EvoGM', .*found 'EvoGN'"):
        cases_of(Arguments)
    Arguments.methods, Arguments.budget = ["EvoGM", "random"], 20
    with pytest.raises(
        SystemExit,
        match="pop-size: expected methods without a population of their own, found 'EvoGM'",
    ):
        cases_of(Arguments)
    Arguments.pop_size = 20
    assert cases_of(Arguments) == [
        Case("small", name, 0, n=2, budget=20) for name in ("EvoGM", "random")
    ]
    Arguments.methods = ["random", "random"]
    assert cases_of(Arguments) == [Case("small", "random", 0, n=2, budget=20)]
    Arguments.methods = ["random", "R 3"]
    with pytest.raises(
        SystemExit, match="budget: expected methods without a budget of their own, found 'R 3'"
    ):
        cases_of(Arguments)
    Arguments.methods = ["EvoGM", "random"]
    Arguments.budget = 19
    with pytest.raises(
        SystemExit, match="budget: expected at least one population of 'random', 20, found 19"
    ):
        cases_of(Arguments)


def test_every_sweep_spends_the_evaluations_of_its_settings():
    for name, method in METHODS.items():
        if method.group == "sweeps":
            pop_size, budget = (
                method.settings.get("pop_size", 20),
                method.settings.get("budget", 160),
            )
            algorithm = method.make(3, pop_size)
            assert algorithm.n_rounds * (algorithm.n_iters + 1) * pop_size == budget, name


class Peak(Problem):
    """A problem with the parts of `LoRAMergeProblem` that a case uses. The score on dev is the share of 40 circles around a
    peak that a point is inside of, the one on test falls with the distance from it."""

    racing, outcomes = None, (torch.full((40,), 1 / 40), torch.ones(40, dtype=torch.bool))
    language_model = SimpleNamespace(model=torch.zeros(1))

    def __init__(self, center):
        super().__init__()
        self._known, self.box = {}, (center - torch.ones(2), center + torch.ones(2))

    def evaluate(self, pop):
        margins = torch.linspace(0.05, 2, 40) - (pop - torch.tensor([0.5, 0.2])).square().sum(
            1, keepdim=True
        )
        return torch.cat([(margins > 0).float().mean(1, keepdim=True), margins], 1)

    def score_tasks(self, coefficients, tasks=None):
        on_test = 1 - (coefficients - torch.tensor([0.5, 0.2])).square().sum(0, keepdim=True)
        return {"peak": self.evaluate(coefficients[None])[:, 0] if tasks is None else on_test}


@pytest.mark.parametrize("method", ["EvoGM", "PSO two rounds", "CMA-ES"])
@pytest.mark.parametrize("center", [0.0, 0.5])
def test_a_case_writes_every_evaluation_and_the_answers_score_and_runs_once(
    tmp_path, monkeypatch, method, center
):
    monkeypatch.setattr(compare, "RUNS", tmp_path)
    monkeypatch.setattr(compare, "level", lambda *_: (Peak(center), []))
    case = Case(
        "small", method, 3, n=2, budget=30, pop_size=10 if method == "PSO two rounds" else 20
    )
    assert "dev" in compare.run_case(case)
    rows = list(csv.reader(case.path.with_name(case.path.name + ".csv").open()))[1:]
    result = json.loads(case.path.with_name(case.path.name + ".json").read_text())
    assert len(rows) == result["evaluations"] == 30 and [float(row[0]) for row in rows] == list(
        range(1, 31)
    )
    for row in rows:
        point = torch.tensor([float(cell) for cell in row[3:]])
        assert float(row[1]) == pytest.approx(
            float(Peak(center).score_tasks(point)["peak"]), abs=1e-4
        )
    answer = torch.tensor(result["answer"])
    assert (
        result["dev"] == pytest.approx(float(Peak(center).score_tasks(answer)["peak"]))
        and result["dev"] > 0.7
    )
    assert result["test"] == pytest.approx(float(Peak(center).score_tasks(answer, [])["peak"]))
    best = max(rows, key=lambda row: float(row[1]))  # of equals the first
    best_on_test = float(
        Peak(center).score_tasks(torch.tensor([float(cell) for cell in best[3:]]), [])["peak"]
    )
    assert result["test of the best on dev"] == pytest.approx(best_on_test, abs=1e-4)
    (run,) = read_runs(case.path.parent)[method]
    assert run.best[-1] == pytest.approx(max(float(row[1]) for row in rows))
    assert compare.run_case(case).endswith(f"is there, from commit {compare.commit()}")


def test_an_algorithm_that_says_which_point_to_take_is_asked(tmp_path, monkeypatch):
    class Decided(RandomSearch):
        def answer(self):
            return torch.tensor([0.25, -0.5])

    monkeypatch.setattr(compare, "RUNS", tmp_path)
    monkeypatch.setattr(compare, "level", lambda *_: (Peak(0.5), []))
    monkeypatch.setitem(METHODS, "Decided", Method(lambda n, p: Decided(p, *box(n))))
    case = Case("small", "Decided", 0, n=2, budget=20)
    compare.run_case(case)
    result = json.loads(case.path.with_name(case.path.name + ".json").read_text())
    assert result["answer"] == pytest.approx(
        [0.75, 0.0]
    )  # as the problem has it, whose box is around .5


def test_without_generators_nothing_is_trained_and_no_candidate_moved():
    algorithm = METHODS["no generators"].make(2, 5)
    workflow = StdWorkflow(algorithm, Sphere())
    workflow.init_step()
    before, point = algorithm.generators.clone(), torch.tensor([[0.3, 0.4]])
    for _ in range(2):
        workflow.step()
    assert torch.equal(algorithm.generators, before) and torch.equal(algorithm._moved(point), point)
    trained = METHODS["EvoGM"].make(2, 5)
    workflow = StdWorkflow(trained, Sphere())
    workflow.init_step()
    before = trained.generators.clone()
    workflow.step()
    assert not torch.equal(trained.generators, before) and not torch.equal(
        trained._moved(point), point
    )


def test_each_of_four_pairs_of_generators_is_trained_and_moves_a_quarter():
    workflow = StdWorkflow(METHODS["four pairs of generators"].make(2, 5), Sphere())
    workflow.init_step()
    algorithm = workflow.algorithm
    before = [generators.clone() for generators, _ in algorithm.pairs]
    workflow.step()
    points = torch.rand(8, 2)
    moved = algorithm._moved(points).split(2)
    for index, (generators, _) in enumerate(algorithm.pairs):
        assert not torch.equal(generators, before[index])
        assert all(not torch.equal(generators, other) for other, _ in algorithm.pairs[:index])
        torch.testing.assert_close(
            moved[index], generate(generators[0], algorithm.sizes, points.split(2)[index])
        )


def test_a_search_from_known_points_evaluates_them_first():
    evaluated = []
    problem = Sphere()
    problem.evaluate = lambda pop: evaluated.extend(pop.tolist()) or pop.square().sum(1)
    workflow = StdWorkflow(METHODS["first points known"].make(4, 5), problem)
    workflow.init_step()
    workflow.step()
    assert evaluated[:6] == [[0.25] * 4, [0.0] * 4, *torch.eye(4).tolist()] and len(evaluated) == 10
    assert len({tuple(point) for point in evaluated}) == 10


def test_a_population_holds_all_known_points():
    assert [compare.default_pop_size(n) for n in (2, 10, 18, 20, 64)] == [20, 20, 20, 22, 66]


def test_constants_differ_inside_the_block_alone():
    before = surrogate.BLUR, surrogate.ROWS, evogm.ROWS
    with compare.other_constants({"BLUR": 0.5, "ROWS": 7}):
        assert (surrogate.BLUR, surrogate.ROWS, evogm.ROWS) == (0.5, 7, 7)
    assert before == (surrogate.BLUR, surrogate.ROWS, evogm.ROWS)
    with (
        pytest.raises(ValueError, match="constants: .*found {'BLURB'}"),
        compare.other_constants({"BLURB": 1}),
    ):
        pass


@pytest.mark.parametrize(
    "method", [name for name, method in METHODS.items() if method.group in ("design", "scores")]
)
def test_every_change_of_the_design_changes_the_search(tmp_path, monkeypatch, method):
    monkeypatch.setattr(compare, "RUNS", tmp_path)
    monkeypatch.setattr(compare, "level", lambda *_: (Peak(0.0), []))
    points = []
    for name in ("EvoGM scores" if METHODS[method].group == "scores" else "EvoGM", method):
        case = Case("small", name, 3, n=2, budget=100 if "64 rows" in method else 25)
        compare.run_case(case)
        rows = list(csv.reader(case.path.with_name(case.path.name + ".csv").open()))[1:]
        points.append([row[3:] for row in rows])
    assert points[0] != points[1] and len(points[0]) == len(points[1])


def test_the_report_has_every_table_and_plot(tmp_path, monkeypatch, capsys):
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(compare, "RUNS", tmp_path)
    monkeypatch.setattr(compare, "level", lambda *_: (Peak(0.0), []))
    for own in (False, True):
        for seed in range(2):
            for method in (
                "EvoGM",
                "EvoGM scores",
                "EvoGM paper",
                "CMA-ES",
                "no generators",
                "no blur",
                "one round",
                "lr 1e-3",
            ):
                compare.run_case(Case("small", method, seed, n=2, budget=40, own_questions=own))
    compare_report.report(
        tmp_path / "small", {name: method.group for name, method in METHODS.items()}
    )
    shown = capsys.readouterr().out
    for header in (
        "| method | seeds | dev at 1 |",
        "| method, test | peak | mean |",
        "| part | seeds |",
        "| change | seeds |",
    ):
        assert header in shown, header
    for header in (
        "| setting | seeds |",
        "| design | seeds |",
        "| test, final choice |",
        "paired p dev",
    ):
        assert header in shown, header
    on_scores = shown.split("With the same information for all, scores alone:")[1].split(
        "| method | evaluations |"
    )[0]
    assert (
        all(f"| {name} | 2 |" in on_scores for name in ("EvoGM scores", "CMA-ES"))
        and "| EvoGM | 2 |" not in on_scores
    )
    assert "| EvoGM | 40.0 |" in shown and f"| float32 | {compare.commit()} |" in shown
    assert {"n2_40_search.png", "n2_40_ablations_final.png"} <= {
        path.name for path in (tmp_path / "small" / "report").iterdir()
    }


def write_runs(folder, method, scores, *, evaluations=1, **more_tasks):
    """The files of a method, a seed a score; without a dtype, as they were until one was written."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, score in enumerate(scores):
        times = {"evaluations": 1, "seconds": 1.0, "seconds of evaluation": 1.0, "commit": "abc"}
        result = {
            "method": method,
            "seed": seed,
            "test": score,
            "test by task": {"peak": score, **more_tasks},
            **times,
        }
        (folder / f"{method}_seed{seed}.json").write_text(json.dumps(result))
        rows = "".join(f"{number},{score},1\n" for number in range(1, evaluations + 1))
        (folder / f"{method}_seed{seed}.csv").write_text(f"evaluation,score,seconds\n{rows}")


GROUPS = {name: method.group for name, method in METHODS.items()}


def test_numbers_of_experts_are_compared_under_one_protocol(tmp_path, capsys):
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    for n in (2, 4, 7):
        write_runs(
            tmp_path / f"n{n}_160_own",
            "EvoGM",
            [n / 10, n / 10],
            **({"another": 0.0} if n == 7 else {}),
        )
    write_runs(tmp_path / "n7_160", "EvoGM", [0.9, 0.9])
    compare_report.report(tmp_path, GROUPS)
    table = capsys.readouterr().out.split("| experts, test")[1:]
    assert len(table) == 1 and "| EvoGM | 0.200 | 0.400 | 0.700 |" in table[0]
    assert {path.name for path in (tmp_path / "report").glob("expert_counts*")} == {
        "expert_counts_160_own.png"
    }


def test_fewer_evaluations_stand_beside_more_and_are_not_tested_against_them(tmp_path, capsys):
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    write_runs(tmp_path / "n10_40_own", "EvoGM", [0.5, 0.7], evaluations=40)
    for method, scores, evaluations in (
        ("EvoGM paper", [0.2, 0.4], 160),
        ("R 5", [0.3, 0.6], 400),
        ("lr 1e-3", [0.3, 0.6], 160),
    ):
        write_runs(tmp_path / "n10_160_own", method, scores, evaluations=evaluations)
    compare_report.report(tmp_path, GROUPS)
    shown = capsys.readouterr().out
    assert (
        "| EvoGM | 40 | 2 | 0.600 ± 0.141 | 0.600 ± 0.141 |\n| EvoGM paper | 160 | 2 | 0.300 ± 0.141 |"
        in shown
    )
    assert "| R 5 | 2 | 400 | 0.450 | 0.300 | 0.450 | 0.300 |  |  |" in shown
    assert "| lr 1e-3 | 2 | 160 | 0.450 | 0.300 | 0.450 | 0.300 | 0.2 | 0.2 |" in shown


def test_what_cannot_be_compared_is_said(tmp_path, capsys):
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    write_runs(tmp_path / "n10_160", "R 3", [0.3, 0.4])
    write_runs(tmp_path / "n10_160_random_own", "EvoGM", [0.3, 0.4])
    compare_report.report(tmp_path, GROUPS)
    shown = capsys.readouterr().out
    assert "R 3: not compared, as EvoGM paper has not run here." in shown
    assert (
        "Whether a control improves is not known: the base was scored on other questions." in shown
    )


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="expected the files of compare.py run, found none"):
        compare_report.report(tmp_path, {})
