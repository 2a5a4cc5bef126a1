"""`MergeMonitor`: column 0 is the fitness, tasks have a history, displays and journals are fed."""

import copy
import io

import evox
import pytest
import torch
from contract import run_vmap_algorithm
from evox.core import Algorithm, Mutable, Problem
from evox.problems.numerical import Sphere
from evox.workflows import EvalMonitor, StdWorkflow
from rich.console import Console

from evox_evogm import MergeMonitor, Outcomes, ResumableSearch, SurrogateEvoGM
from evox_evogm.monitoring.display.facts import RunFacts
from evox_evogm.monitoring.display.lines import ProgressLines
from evox_evogm.monitoring.display.panel import panel
from evox_evogm.resume.journal import read_blocks

N = 3
WEIGHTS = torch.tensor([0.25, 0.75])


class Margins(Problem):
    """A score of two outcomes that count as they are, to be maximised."""

    def evaluate(self, pop):
        margins = -(pop[:, :2] - 0.2).square()
        return torch.cat([(margins @ WEIGHTS)[:, None], margins], 1)


def surrogate(outcomes=True):
    bounds = torch.ones(N)
    meaning = Outcomes(WEIGHTS, torch.zeros(2, dtype=torch.bool)) if outcomes else None
    return SurrogateEvoGM(3, -bounds, bounds, outcomes=meaning)


def run(monitor, problem=None, algorithm=None, steps=4, direction="max"):
    torch.manual_seed(0)
    algorithm = surrogate() if algorithm is None else algorithm
    workflow = StdWorkflow(algorithm, problem or Margins(), monitor, opt_direction=direction)
    workflow.init_step()
    for _ in range(steps - 1):
        workflow.step()
    return workflow


def test_evoxs_own_monitor_refuses_outcomes():
    monitor = EvalMonitor()
    run(monitor)
    with pytest.raises(ValueError, match="single best fitness"):
        monitor.get_best_fitness()
    assert monitor.get_fitness_history()[0].shape == (3, 3)


def test_the_first_column_is_the_fitness_in_the_direction_of_the_workflow():
    monitor = MergeMonitor(full_sol_history=True, full_outcome_history=True, topk=2)
    run(monitor)
    points = torch.cat(monitor.get_solution_history())
    scores = -((points[:, :2] - 0.2).square() @ WEIGHTS)
    torch.testing.assert_close(torch.cat(monitor.get_fitness_history()), scores)
    torch.testing.assert_close(monitor.get_best_fitness(), scores.max())
    torch.testing.assert_close(monitor.get_topk_fitness(), scores.topk(2).values)
    torch.testing.assert_close(monitor.get_best_solution(), points[scores.argmax()])
    outcomes = torch.cat(monitor.get_outcome_history())
    torch.testing.assert_close(outcomes, -(points[:, :2] - 0.2).square())


def test_outcomes_that_are_not_kept_are_refused():
    with pytest.raises(ValueError, match=r"expected MergeMonitor\(full_outcome_history=True\)"):
        MergeMonitor().get_outcome_history()


@pytest.mark.parametrize("source", ["eval", "pop"])
def test_it_can_be_plotted(source):
    pytest.importorskip("plotly")
    monitor = MergeMonitor(full_pop_history=True)
    run(monitor)
    assert len(monitor.plot(source=source).data) > 0


def test_with_several_objectives_it_is_evoxs_monitor():
    ours, theirs = MergeMonitor(multi_obj=True), EvalMonitor(multi_obj=True)
    for monitor in (ours, theirs):
        run(monitor)
    assert torch.equal(ours.get_pf_fitness(), theirs.get_pf_fitness())


def test_a_fitness_of_one_column_is_recorded_as_evox_does():
    ours, theirs = MergeMonitor(full_sol_history=True), EvalMonitor(full_sol_history=True)
    for monitor in (ours, theirs):
        run(monitor, Sphere(), surrogate(outcomes=False), direction="min")
    assert torch.equal(ours.get_best_solution(), theirs.get_best_solution())
    for one, other in zip(ours.get_fitness_history(), theirs.get_fitness_history(), strict=True):
        assert torch.equal(one, other)


class Draws(Algorithm):
    """Evaluates random points, whatever comes back."""

    def __init__(self):
        super().__init__()
        self.pop = Mutable(torch.zeros(4, N))
        self.fit = Mutable(torch.zeros(4, 3))

    def step(self):
        self.pop = torch.rand(4, N)
        self.fit = self.evaluate(self.pop)


@pytest.mark.slow
@pytest.mark.compiled
def test_compiled_steps_are_recorded_and_told():
    told = []
    plain = MergeMonitor(full_outcome_history=True)
    compiled = MergeMonitor(full_outcome_history=True, callbacks=[told.append])
    for monitor in (plain, compiled):
        workflow = StdWorkflow(Draws(), Margins(), monitor, opt_direction="max")
        step = evox.compile(workflow.step) if monitor is compiled else workflow.step
        torch.manual_seed(0)
        # Without this option compiled code has random numbers of its own.
        with torch._inductor.config.patch(fallback_random=True):
            for _ in range(4):
                step()
    torch.testing.assert_close(compiled.get_best_fitness(), plain.get_best_fitness())
    torch.testing.assert_close(compiled.get_best_solution(), plain.get_best_solution())
    for one, other in (
        (compiled.get_fitness_history(), plain.get_fitness_history()),
        (compiled.get_outcome_history(), plain.get_outcome_history()),
    ):
        torch.testing.assert_close(torch.stack(one), torch.stack(other))
    assert [progress.record["evaluation"] for progress in told] == list(range(16))
    assert [progress.record["step"] for progress in told[::4]] == [0, 1, 2, 3]


def test_many_runs_under_vmap_are_recorded():
    monitor = MergeMonitor(full_outcome_history=True)
    torch.manual_seed(0)
    workflow = StdWorkflow(surrogate(), Margins(), monitor, opt_direction="max")
    run_vmap_algorithm(workflow, instances=2, steps=2, compiled=False)
    assert [tuple(fitness.shape) for fitness in monitor.get_fitness_history()] == [(2, 3)] * 3
    assert [tuple(outcomes.shape) for outcomes in monitor.get_outcome_history()] == [(2, 3, 2)] * 3
    torch.testing.assert_close(
        monitor.get_outcome_history()[1] @ WEIGHTS, monitor.get_fitness_history()[1]
    )


def test_many_runs_have_no_display():
    workflow = StdWorkflow(surrogate(), Margins(), MergeMonitor(callbacks=[print]))
    with pytest.raises(ValueError, match="found many under vmap"):
        run_vmap_algorithm(workflow, instances=2, steps=1, compiled=False)


def test_callbacks_are_told_every_evaluation_with_the_number_that_is_minimised():
    told = []
    monitor = MergeMonitor(callbacks=[told.append], budget=12)
    run(monitor, Sphere(), surrogate(outcomes=False), direction="min")
    assert len(told) == 12 and told[-1].done == 12 and told[-1].share == 1
    last = told[-1]
    assert last.shown(last.best) == pytest.approx(float(monitor.get_best_fitness()))
    assert f"best score {float(monitor.get_best_fitness()):.4f}" in str(last)
    console = Console(file=io.StringIO(), width=80)
    console.print(panel(last, RunFacts([], 1, []), console))
    shown = console.file.getvalue()
    assert f"best {float(monitor.get_best_fitness()):.3f}" in shown
    assert "coordinates of the best (3)" in shown and "by task" not in shown


def test_without_a_budget_a_display_says_how_long_it_has_run():
    told = []
    run(MergeMonitor(callbacks=[told.append]))
    assert str(told[-1]).startswith("12 evaluations, best score -")
    assert str(told[-1]).endswith("so far") and told[-1].share == 0


def test_a_callback_that_fails_is_left_out_with_one_warning(caplog):
    told = []

    class Tracker:
        def __call__(self, progress):
            raise OSError("no space left")

    with MergeMonitor(callbacks=[Tracker(), told.append]) as monitor:
        run(monitor)
    assert len(told) == 12
    warnings = [record.getMessage() for record in caplog.records]
    expected = "Tracker has failed and is left out from here on: OSError: no space left"
    assert warnings == [expected]


def test_a_display_is_begun_and_ended():
    console = Console(file=io.StringIO(), width=100)
    with MergeMonitor(callbacks=[ProgressLines(console, seconds=1e9)], budget=12) as monitor:
        run(monitor)
    first, last = console.file.getvalue().splitlines()
    assert first.startswith("1 of 12 evaluations") and last.startswith("12 of 12 evaluations")


def lines_of(folder):
    """The records of a journal without what depends on the clock."""
    records = []
    for block in read_blocks(folder / "history.jsonl"):
        for record in block.records:
            records.append({name: record[name] for name in record if name != "seconds"})
    return records


@pytest.mark.parametrize("direction", ["max", "min"])
def test_the_journal_has_the_lines_of_a_resumable_search(tmp_path, direction):
    with MergeMonitor(journal=tmp_path / "ours") as monitor:
        run(monitor, direction=direction)
    torch.manual_seed(0)
    workflow = StdWorkflow(surrogate(), Margins(), opt_direction=direction)
    with ResumableSearch(workflow, tmp_path / "theirs") as search:
        search.run(4)
    assert lines_of(tmp_path / "ours") == lines_of(tmp_path / "theirs")
    assert len(lines_of(tmp_path / "ours")) == 12


def test_a_resumable_search_goes_on_from_the_journal_of_a_monitor(tmp_path):
    class Counted(Margins):
        points = 0

        def evaluate(self, pop):
            Counted.points += len(pop)
            return super().evaluate(pop)

    with MergeMonitor(journal=tmp_path) as monitor:
        run(monitor)
    torch.manual_seed(0)
    workflow = StdWorkflow(surrogate(), Counted(), opt_direction="max")
    with ResumableSearch(workflow, tmp_path) as search:
        search.run(5)
    assert Counted.points == 3  # those of the fifth step


def test_a_journal_marks_what_was_recommended(tmp_path):
    """What is right is the journal of a `ResumableSearch`, which knows when it steps."""
    with MergeMonitor(journal=tmp_path / "ours") as monitor:
        workflow = run(monitor, steps=3)
        workflow.algorithm.recommend()
        workflow.step()
        workflow.algorithm.recommend()
    torch.manual_seed(0)
    workflow = StdWorkflow(surrogate(), Margins(), opt_direction="max")
    with ResumableSearch(workflow, tmp_path / "theirs") as search:
        for steps in (3, 4):
            search.run(steps)
            workflow.algorithm.recommend()
    ours, theirs = lines_of(tmp_path / "ours"), lines_of(tmp_path / "theirs")
    assert ours == theirs and sum("recommended" in record for record in ours) == 2
    torch.manual_seed(0)
    workflow = StdWorkflow(surrogate(), Margins(), opt_direction="max")
    with ResumableSearch(workflow, tmp_path / "ours") as search:
        search.run(5)
    assert len(lines_of(tmp_path / "ours")) == 5 * 3 + 2


class Alone(Draws):
    """Evaluates one random point a step."""

    def step(self):
        self.pop = torch.rand(1, N)
        self.fit = self.evaluate(self.pop)


class Watched(MergeMonitor):
    """A monitor of a user."""


@pytest.mark.parametrize("kind", [MergeMonitor, Watched])
def test_a_journal_tells_steps_of_one_point_from_a_recommended_one(tmp_path, kind):
    with kind(journal=tmp_path) as monitor:
        workflow = run(monitor, algorithm=Alone(), steps=3)
        workflow.algorithm.evaluate(torch.zeros(1, N))
        workflow.step()
        workflow.algorithm.evaluate(torch.ones(1, N))
    found = [(line["step"], "recommended" in line) for line in lines_of(tmp_path)]
    steps = [(0, False), (1, False), (2, False), (2, True), (3, False), (3, True)]
    assert found == steps


def test_a_journal_needs_a_folder_without_one(tmp_path):
    with MergeMonitor(journal=tmp_path) as monitor:
        run(monitor)
    with pytest.raises(ValueError, match="expected a folder without a history, found one"):
        MergeMonitor(journal=tmp_path)


def test_a_problem_that_reports_nothing_is_refused():
    with pytest.raises(ValueError, match="expected one that reports evaluations .* found Sphere"):
        MergeMonitor(problem=Sphere())
    with pytest.raises(ValueError, match=r"expected MergeMonitor\(problem=...\)"):
        MergeMonitor().get_task_history()


def test_a_copy_of_a_workflow_goes_on_and_is_told():
    told = []
    workflow = run(MergeMonitor(callbacks=[told.append]))
    copy.deepcopy(workflow).step()
    assert [progress.record["step"] for progress in told[::3]] == [0, 1, 2, 3, 4]
