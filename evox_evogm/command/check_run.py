"""What `evogm check` does: load everything, try merges, and predict what a run will take."""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from evox.core import Problem
from evox.workflows import StdWorkflow

from evox_evogm.command.confirm import cost_of_confirmation
from evox_evogm.command.merge_run import MergeRun
from evox_evogm.command.messages import print_notes, print_text
from evox_evogm.command.notes import evaluations_before_groups
from evox_evogm.command.number_format import with_error
from evox_evogm.command.objective_errors import objective_error
from evox_evogm.command.report_data import wants_contributions
from evox_evogm.command.search_algorithm import RECOMMENDING, cost_of_point, make_algorithm
from evox_evogm.command.settings import RunSettings
from evox_evogm.command.trial import cost_of_trial
from evox_evogm.command.uncertainty import standard_errors
from evox_evogm.monitoring.budget import Budget
from evox_evogm.monitoring.counted import counted
from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.problems.adapters.odd_experts import ExpertSpectrum, spectra_of
from evox_evogm.problems.evaluation import Evaluation
from evox_evogm.problems.inference.texts import reading_texts
from evox_evogm.problems.tasks.requests import Case, gold_text, prompts_of
from evox_evogm.problems.trained_lora import cost_of_training

TRIED = 3  # merges that are timed together, at most a population
SPREAD = 0.1  # standard deviation of their coefficients


@dataclass(frozen=True)
class Tried:
    """What one merge gave, and what some took.

    :param average: the evaluation of the average of the experts.
    :param seconds: of an evaluation.
    :param step_seconds: that the algorithm takes for a step, without its evaluations.
    """

    average: Evaluation
    seconds: float
    step_seconds: float


def check(
    settings: RunSettings, folder: Path, *, prompts: bool = False, imports: float = 0.0
) -> list[str]:
    """Load all that a run needs, try merges, and say what was found and what the run will take.

    Nothing is left on the disk.

    :param folder: the folder that paths in the settings are relative to.
    :param prompts: show the first prompt of every task, and the answer that it expects.
    :param imports: the seconds that imports took before this, which a run takes too.
    :return: the names of experts that change nothing, as if they had not been trained.
    :raises ValueError: if a setting, a file or an adapter cannot be used, in one sentence.
    """
    start = time.monotonic()
    with TemporaryDirectory() as scratch, MergeRun(settings, folder, Path(scratch)) as merge_run:
        reading = time.monotonic() - start
        unchanged = describe_parts(merge_run, reading)
        tried = try_merges(merge_run)
        describe_average(tried.average, regressed=merge_run.problem.regressed)
        if prompts:
            show_prompts(merge_run)
        for line in predict(merge_run, tried, imports + reading):
            print(line)
        return unchanged


def describe_parts(merge_run: MergeRun, seconds: float) -> list[str]:
    """Print what was read: base, experts, tasks, and what the probe found.

    :return: the names of experts that change nothing.
    """
    problem = merge_run.problem
    model = problem.language_model.model
    size = sum(parameter.numel() for parameter in model.parameters())
    where = f"{merge_run.dtype} on {problem.language_model.device}"
    base = sanitize(merge_run.settings.base)
    print(f"base: {base}, {in_words(size)} parameters in {where}, read in {seconds:.0f} s")
    given = problem.experts[: problem.n_given]  # behind them may stand the same ones, regressed
    spectra = spectra_of(given)
    for expert, found in zip(given, spectra, strict=True):
        if expert.checkpoint is not None:
            words = expert.checkpoint.words() + describe_size(found)
            print(f"expert: {sanitize(expert.name)}, {words}")
            continue
        ranks = [factors.a.shape[-2] for factors in expert.modules.values()]
        modules = counted(len(expert.modules), "module")
        as_it_is = problem.keep_experts or not problem.regressed
        words = describe_size(found) if as_it_is else ""
        print(f"expert: {sanitize(expert.name)}, rank {max(ranks)}, {modules}{words}")
    if problem.groups.count > 1:
        words = f"groups: {problem.groups.count}, so {problem.n_coefficients} coefficients"
        first = evaluations_before_groups(merge_run.algorithm)
        print(f"{words}, after {first} evaluations with one per expert" if first else words)
    for dev, test in zip(merge_run.tasks.dev, merge_run.tasks.test, strict=True):
        examples = f"{len(dev.examples)} dev and {len(test.examples)} test examples"
        print(f"task: {sanitize(dev.name)}, {sanitize(dev.metric)}, {examples}")
    off = problem.capabilities.switched_off
    words = f"done without {', '.join(off)}" if off else "batches give what single questions give"
    print(f"probe of the base: {words}")
    print_notes(merge_run.notes)
    return [found.name for found in spectra if not found.modules]


def in_words(parameters: int) -> str:
    """How many parameters a model has: `135 million`, `1.5 million` or `21 thousand`."""
    if parameters < 1000:
        return str(parameters)
    size, unit = parameters / 1000, "thousand"
    if parameters >= 1e6:
        size, unit = parameters / 1e6, "million"
    return f"{size:,.1f} {unit}" if size < 9.95 else f"{size:,.0f} {unit}"


def describe_size(found: ExpertSpectrum) -> str:
    """The norm of what an expert changes, and how much of it goes in one direction, in words."""
    if not found.modules:
        return ", which change nothing"
    words = f", norm {found.norm:.3g}"
    if math.isnan(found.share):  # vectors alone have no directions
        return words
    return f"{words}, {100 * found.share:.3g} % in one direction"


def try_merges(merge_run: MergeRun) -> Tried:
    """Evaluate the average of the experts, and time merges around it."""
    problem, algorithm = merge_run.problem, merge_run.algorithm
    found: list[Evaluation] = []
    problem.on_evaluations = found.extend
    problem.choose_modes(algorithm.pop_size)
    problem.resolve_constraints()
    average = problem.start
    problem.evaluate(average[None])
    first = found[0]
    generator = torch.Generator().manual_seed(0)
    count = min(TRIED, algorithm.pop_size)
    noise = torch.randn(count, len(average), generator=generator)
    start = time.monotonic()
    fitness = problem.evaluate(average + SPREAD * noise)
    seconds = (time.monotonic() - start) / count
    return Tried(first, seconds, time_step(merge_run, fitness))


class Repeated(Problem):
    """Gives a population the fitness of another one, with noise: nothing is evaluated."""

    def __init__(self, fitness: torch.Tensor):
        super().__init__()
        self.fitness = fitness

    def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(pop)) % len(self.fitness)
        fitness = self.fitness[rows]
        return fitness + 0.01 * torch.randn(fitness.shape)


def time_step(merge_run: MergeRun, fitness: torch.Tensor) -> float:
    """The seconds that a step of the algorithm takes beside its evaluations.

    :param fitness: of some merges, as the problem gives it.
    """
    problem = merge_run.problem
    algorithm = make_algorithm(
        merge_run.settings,
        merge_run.algorithm.pop_size,
        problem.box,
        merge_run.tasks.dev,
        problem.n_experts,
        merge_run.objective,
    )
    workflow = StdWorkflow(
        algorithm, Repeated(fitness), opt_direction=merge_run.directions, device="cpu"
    )
    workflow.init_step()
    start = time.monotonic()
    workflow.step()
    return time.monotonic() - start


def describe_average(average: Evaluation, *, regressed: bool) -> None:
    """Print the scores of the merge that was tried.

    :param regressed: whether it is the RegMean merge, around which the search begins then.
    """
    name = "the RegMean merge" if regressed else "the average of the experts"
    if average.failure:
        print(f"{name} could not be evaluated: {sanitize(average.failure)}")
        return
    errors = standard_errors(average.scores)
    error = objective_error(average.objective, average.by_task, errors)
    split = "dev" if average.is_whole else "a minibatch of dev"
    print(f"{name} on {split}: score {with_error(average.score, error)}")
    for task, score in average.by_task.items():
        is_odd = score == 0 and average.is_whole  # a minibatch has few examples
        remark = " (are the answers parsed? see --prompts)" if is_odd else ""
        print(f"    {sanitize(task)} {with_error(score, errors[task])}{remark}")


def show_prompts(merge_run: MergeRun) -> None:
    """Print the first prompt of every task as the base gets it, and what the task expects."""
    model = merge_run.problem.language_model
    for task in merge_run.tasks.dev:
        example = task.examples[0]
        if not example.prompt:  # a function has prompts of its own
            continue
        tokenizer = reading_texts(model).tokenizer
        (tokens,) = prompts_of(task, model, [Case(0, example)])
        print(f"\ntask {sanitize(task.name)}, first prompt:")
        print_text(str(tokenizer.decode(list(tokens))))
        print("what the task expects:")
        print_text(gold_text(task, example))


def predict(merge_run: MergeRun, tried: Tried, beginning: float) -> list[str]:
    """What the run will take, in sentences.

    :param beginning: the seconds until everything was imported and read.
    """
    settings = merge_run.settings
    limit = merge_run.limit.budget
    per_step = merge_run.algorithm.pop_size * tried.seconds + tried.step_seconds
    evaluations = limit.evaluations
    if evaluations is not None:
        points = evaluations / cost_of_point(settings)
        search = points / merge_run.algorithm.pop_size * per_step
    else:
        search = limit.seconds or 0.0
        points = search / per_step * merge_run.algorithm.pop_size
    own = tried.seconds / cost_of_point(settings)  # of an evaluation without gradient
    table = table_seconds(merge_run, own)
    each = f"about {tried.seconds:.2g} s each"
    steps = f"{tried.step_seconds:.2g} s a step for the search itself"
    extra = extra_evaluations(merge_run)
    together = beginning + search + table + sum(extra.values()) * own
    # The search may end before its budget.
    may_stop = settings.stop is not None and isinstance(merge_run.algorithm, RECOMMENDING)
    most = "at most " if may_stop else ""
    searching = f"{most}{minutes(search)} for {_evaluations(limit, points)}"
    lines = [
        f"\npredicted: {searching} ({each}, {steps}),",
        f"    {minutes(beginning)} for imports and reading, as this check took,",
        *[f"    {minutes(count * own)} for {what}," for what, count in extra.items()],
        f"    {minutes(table)} for the final table, {most}{minutes(together)} together",
        f"memory: {peak_memory()}, as this check took",
    ]
    return [*lines, *merge_run.limit.words()]


def _evaluations(limit: Budget, points: float) -> str:
    if limit.evaluations is not None:
        return str(limit)
    return f"about {points:.0f} evaluations"


def extra_evaluations(merge_run: MergeRun) -> dict[str, float]:
    """What a run does beside its search and its final table, in evaluations on dev."""
    problem, settings = merge_run.problem, merge_run.settings
    found: dict[str, float] = {}
    trial = settings.trial_settings
    if trial is not None:
        training = cost_of_training(trial.epochs) if trial.row else 0.0
        found["the trial"] = cost_of_trial(problem, trial) + training
    if settings.confirm:
        tasks = merge_run.further, problem.tasks
        what = f"the best merges again (at most {settings.confirm})"
        found[what] = cost_of_confirmation(*tasks, settings.confirm)
    if settings.test_points and problem.minibatches == 1:
        dev, test = (_letters(tasks) for tasks in (merge_run.tasks.dev, merge_run.tasks.test))
        found["test scores of the history"] = settings.test_points * test / dev
    if wants_contributions(settings.contributions, problem.n_experts):
        found["the merge without each expert"] = problem.n_experts
    return found


def table_seconds(merge_run: MergeRun, seconds: float) -> float:
    """The seconds that scoring the final table takes.

    :param seconds: of one evaluation on the dev examples.
    """
    problem = merge_run.problem
    models = problem.n_given + 3 + problem.regressed
    dev, test = (_letters(tasks) for tasks in (merge_run.tasks.dev, merge_run.tasks.test))
    return seconds * (models * test / dev + models - 1)


def _letters(tasks: Sequence) -> float:
    """How much there is to read in the examples of some tasks."""
    letters = 0
    for task in tasks:
        for example in task.examples:
            letters += max(1, len(example.prompt))
    return float(max(1, letters))


def minutes(seconds: float) -> str:
    """A time in words that are as exact as a prediction."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"


def peak_memory() -> str:
    """The most memory that this process has taken, of the machine and of a GPU."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        words = "not known of this system"
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        in_bytes = peak if sys.platform == "darwin" else 1024 * peak
        words = f"{in_bytes / 2**30:.1f} GiB"
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        words += f" and {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of the GPU"
    return words
