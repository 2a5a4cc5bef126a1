"""Run a case, and write its files.

- `METHOD_seedK.csv` has a line per evaluation: full evaluations used, dev score, seconds since the
  start, coefficients.
- `METHOD_seedK.json` is the result: scores of the recommended point on dev and test, and the test
  score of the best on dev.
- `METHOD_seedK.jsonl` is the journal of a suite whose cases take minutes; an interrupted case goes
  on from it.
"""

import csv
import json
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from functools import lru_cache
from pathlib import Path

import torch
from evox.core import Problem
from evox.workflows import StdWorkflow

from benchmarks.compare.cases import RUNS, Case
from benchmarks.compare.methods import METHODS
from benchmarks.compare.recorder import BudgetUsed, Recorder, best_rows
from benchmarks.compare.trained_lora import run_training
from benchmarks.suites.suite import SUITES
from evox_evogm.algorithms.stopping import should_stop
from evox_evogm.monitoring.progress import ROUNDING
from evox_evogm.problems import LoRAMergeProblem, Task
from evox_evogm.problems.minibatches import minibatches_for
from evox_evogm.resume.journal import Journal


def load_suite(case: Case) -> tuple[LoRAMergeProblem, list[Task]]:
    """The dev problem and the test tasks of a case."""
    draw = case.seed if case.resampled_dev else None
    method = METHODS[case.method]
    objectives = "gradients" if method.gradients else "outcomes"
    settings = {"racing": method.racing, "objectives": objectives, "groups": method.modules}
    settings |= {"control": case.control, "limit": case.limit}
    settings |= {"regmean": case.regmean, "keep_experts": case.keep_experts}
    if method.gradients:
        settings["mode"] = "unmerged"
        settings["minibatches"] = minibatches_of(case, draw)
    if case.dev_examples:
        settings["dev_examples"] = case.dev_examples
    return _load_suite(case.suite, case.n, draw, tuple(settings.items()))


def minibatches_of(case: Case, draw: int | None) -> int:
    """Minibatches an epoch: those of the method, or what the budget makes of it.

    :param draw: the number of the set of questions, or None.
    """
    method = METHODS[case.method]
    if method.minibatches is not None:
        return method.minibatches
    split = "test" if case.limit else "dev"
    tasks = SUITES[case.suite].tasks(case.n, split, draw, case.dev_examples or None)
    examples = [len(task.examples) for task in tasks]
    return minibatches_for(method.budget or case.budget, examples)


@lru_cache(maxsize=2)
def _load_suite(
    name: str, n: int, draw: int | None, settings: tuple
) -> tuple[LoRAMergeProblem, list[Task]]:
    """Load a suite.

    :param settings: pairs of names and values, for `make_problem`.
    """
    suite = SUITES[name]
    problem = suite.make_problem(n, draw=draw, **dict(settings))
    dev_examples = dict(settings).get("dev_examples")
    return problem, suite.tasks(n, "test", draw, dev_examples)


@lru_cache
def commit() -> str:
    """The commit of this file, with a + if something has been changed since."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def search(case: Case, problem: Problem) -> tuple[Recorder, torch.Tensor]:
    """Use up the budget.

    :param case: what to run.
    :param problem: the dev problem.
    :return: the evaluations, and the point that the algorithm recommends, else the best on dev.
    """
    method = METHODS[case.method]
    pop_size, budget = method.pop_size or case.pop_size, method.budget or case.budget
    recorder = Recorder(problem, budget, method.outcomes)
    for round_ in range(1, method.rounds + 1):
        torch.manual_seed(1000 * case.seed + round_)
        if round_ > 1:
            recorder.basis = best_rows(recorder.rows, len(recorder.center)) - recorder.center
        recorder.until = budget * round_ // method.rounds
        arguments = {"problem": problem} if method.outcomes else {}
        algorithm = method.make(len(recorder.center), pop_size, **arguments)
        workflow = StdWorkflow(algorithm, recorder, opt_direction="max", device="cpu")
        run_until_used(workflow, recorder, stop=method.stop)
    if hasattr(algorithm, "recommend"):
        return recorder, recorder.coefficients(workflow.algorithm.recommend())
    return recorder, best_rows(recorder.rows, 1)[0]


def run_until_used(workflow: StdWorkflow, recorder: Recorder, *, stop: bool = False) -> None:
    """Step until the budget of the recorder is used; the last population may be cut.

    An algorithm that recommends a point evaluates it, unless it sees minibatches: it stops one
    evaluation before the end, and before a population that would be cut.

    :param stop: whether it ends where its last evaluations have gained little.
    """
    algorithm = workflow.algorithm
    if hasattr(algorithm, "recommend"):
        step = algorithm.pop_size * recorder.cost
        until = recorder.until - recorder.recommendation_cost + ROUNDING
        workflow.init_step()
        while recorder.budget_used + step <= until:
            if stop and should_stop(algorithm, *recorder.history, cost=recorder.cost):
                break
            workflow.step()
        return
    try:
        workflow.init_step()
        while recorder.budget_used < recorder.until:
            workflow.step()
    except BudgetUsed:
        pass


def run_case(
    case: Case,
    runs: Path = RUNS,
    load: Callable[[Case], tuple[Problem, list[Task]]] = load_suite,
) -> str:
    """Run one case and write its files, unless they are there.

    :param case: what to run.
    :param runs: the folder of all runs.
    :param load: gives the dev problem and the test tasks.
    :return: a line for the log.
    """
    result_path = case.file(runs, ".json")
    if result_path.exists():
        earlier = json.loads(result_path.read_text())
        check_same_minibatches(case, earlier, result_path)
        return f"{result_path.stem} is there, from commit {earlier['commit']}"
    result_path.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(case.threads)
    problem, test_tasks = load(case)
    problem.cache.clear()  # it may come from the case before
    if METHODS[case.method].make is None:
        training = run_training(
            case, case.file(runs, ".csv"), problem.language_model, problem.tasks, test_tasks
        )
        result = {**described(case, problem), **training}
    elif is_resumable(case):
        with closing(open_journal(case.file(runs, ".jsonl"), problem)) as journal:
            # Of a killed process, which made the same evaluations from the same seed.
            seconds_before = sum(record["seconds"] for record in journal.records)
            result = run_search(case, runs, problem, test_tasks, seconds_before)
    else:
        result = run_search(case, runs, problem, test_tasks)
    partial_path = result_path.with_suffix(".part")
    partial_path.write_text(json.dumps(result, indent=1))
    partial_path.rename(result_path)
    scores = f"dev {result['dev']:.3f} test {result['test']:.3f}"
    return f"{result_path.stem}: {scores}, {result['seconds']:.1f} s"


def check_same_minibatches(case: Case, earlier: dict, path: Path) -> None:
    """Refuse a result with other minibatches, such as one of a version that had none."""
    method = METHODS[case.method]
    if not method.gradients:
        return
    wanted = minibatches_of(case, case.seed if case.resampled_dev else None)
    found = earlier.get("minibatches", 1)
    if found != wanted:
        raise SystemExit(
            f"{path}: expected {wanted} minibatches, found {found}, of commit {earlier['commit']}; "
            "take another folder, or the method on all questions"
        )


def run_search(
    case: Case,
    runs: Path,
    problem: Problem,
    test_tasks: list[Task],
    seconds_before: float = 0.0,
) -> dict:
    """Search, write the evaluations, and score the final choice.

    :param seconds_before: to be added to the seconds since the start.
    :return: the result.
    """
    recorder, point = search(case, problem)
    seconds = time.perf_counter() - recorder.start + seconds_before
    write_evaluations(case.file(runs, ".csv"), recorder, seconds_before)
    return {
        **described(case, problem),
        "evaluations": len(recorder.rows),
        "minibatches": recorder.minibatches,
        **score_choice(problem, test_tasks, point, best_on_dev(recorder)),
        "seconds": seconds,
        "seconds of evaluation": recorder.evaluation_seconds + seconds_before,
        "recommended": point.tolist(),
    }


def described(case: Case, problem: Problem) -> dict:
    """What a result says of the case and of the code that ran it."""
    return {
        "method": case.method,
        "seed": case.seed,
        "commit": commit(),
        "dtype": str(problem.language_model.model.dtype).removeprefix("torch."),
    }


def is_resumable(case: Case) -> bool:
    return case.suite in SUITES and SUITES[case.suite].resumable


def open_journal(path: Path, problem: LoRAMergeProblem) -> Journal:
    """A journal of the evaluations of the problem, which starts with those that are in it."""
    journal = Journal(path)
    problem.load_history(journal.records)

    def append(evaluations: list) -> None:
        journal.append([e.as_record() for e in evaluations if e.seconds])

    problem.on_evaluations = append
    return journal


def write_evaluations(path: Path, recorder: Recorder, seconds_before: float) -> None:
    """Write a line per evaluation, without its score if that is on a minibatch.

    :param path: of the file.
    :param recorder: what was evaluated.
    :param seconds_before: to be added to the seconds since the start.
    """
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        n = len(recorder.rows[0].point)
        coefficients = [f"coefficient {k}" for k in range(n)]
        table.writerow(["evaluation", "score", "seconds", *coefficients])
        for row in recorder.rows:
            point = [f"{value:.6g}" for value in row.point]
            score = "" if recorder.minibatches > 1 else f"{row.score:.6g}"
            seconds = f"{row.seconds + seconds_before:.3f}"
            table.writerow([f"{row.budget_used:.6g}", score, seconds, *point])


def best_on_dev(recorder: Recorder) -> torch.Tensor | None:
    """The point with the best score; None if scores are on minibatches, where none is the best."""
    if recorder.minibatches > 1:
        return None
    return best_rows(recorder.rows, 1)[0]


def score_choice(
    problem: Problem, test_tasks: list[Task], point: torch.Tensor, best: torch.Tensor | None
) -> dict:
    """Scores of the final choice, and of the best on dev, which is only reported.

    :param best: on dev, or None.
    """
    dev = score_by_task(problem, point)
    test = score_by_task(problem, point, test_tasks)
    test_of_best = test
    if best is not None and not torch.equal(point, best):
        test_of_best = score_by_task(problem, best, test_tasks)
    return {
        "dev": mean(dev),
        "test": mean(test),
        "test of the best on dev": None if best is None else mean(test_of_best),
        "dev by task": dev,
        "test by task": test,
    }


def score_by_task(
    problem: Problem, point: torch.Tensor, tasks: list[Task] | None = None
) -> dict[str, float]:
    scores = problem.score_tasks(point, tasks)
    return {name: float(values.mean()) for name, values in scores.items()}


def mean(scores: dict[str, float]) -> float:
    return sum(scores.values()) / len(scores)
