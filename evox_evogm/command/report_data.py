"""What the report shows that only the model can say: `report_data.json`.

It is computed once, when the search is over, so that the report can be made again without the
model. What cannot be computed has the reason in its place, and the run has its result all the same.
"""

import json
import logging
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from evox_evogm.command.best_expert import best_places
from evox_evogm.command.choose_examples import choose_examples, count_patterns
from evox_evogm.command.run_folder import read_table
from evox_evogm.command.scores import ByExample, ScoreRow, label
from evox_evogm.command.tasks import RunTasks
from evox_evogm.command.uncertainty import spread_error
from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.problems.evaluation import Evaluation
from evox_evogm.problems.inference.texts import reading_texts
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.problems.one_merge import as_one_merge
from evox_evogm.problems.retries import evaluate_with_retries
from evox_evogm.problems.tasks.answers import answers_of
from evox_evogm.problems.tasks.custom_task import CustomTask
from evox_evogm.problems.tasks.metrics import score_task
from evox_evogm.problems.tasks.task import Example, Task
from evox_evogm.resume.atomic_write import atomic_write
from evox_evogm.resume.journal import to_json

log = logging.getLogger(__name__)

REPORT_DATA = "report_data.json"
FORMAT = 1
PROGRAMS = ("evogm", "cli")  # the latter with python -m
MOST_EXPERTS = 16  # whose contributions are evaluated if the settings do not say
PROMPTS = 5
CANDIDATES = 12  # examples, of which the first that can be shown are
ALIKE = 0.2  # the most that a score may differ in its last digits, that of a likelihood included
MOST_TOKENS = 48  # of a shown answer
LONGEST_PROMPT = 1500  # characters, of which a third are from the beginning
LONGEST_ANSWER = 600


def wants_contributions(setting: bool | None, n_experts: int) -> bool:
    """Whether each expert's contribution is evaluated.

    :param setting: `contributions` of the settings; None leaves it to the number of experts.
    """
    return n_experts <= MOST_EXPERTS if setting is None else setting


def collect_report_data(
    problem: LoRAMergeProblem,
    tasks: RunTasks,
    best: torch.Tensor,
    rows: Sequence[ScoreRow],
    *,
    contributions: bool,
    box: torch.Tensor | None = None,
) -> dict:
    """What `report_data.json` is to hold.

    :param problem: of the search.
    :param tasks: in both splits.
    :param best: `(n g,)` effective coefficients of the merge.
    :param rows: of the final table.
    :param contributions: whether the merge is evaluated on dev without each of its experts.
    :param box: a `(2, n g)` tensor, the box of the search in the end; by default that of the
        problem.
    """
    best = best.cpu()
    data: dict = {"format": FORMAT, "command": command_line(), "box": describe_box(problem, box)}
    if contributions:
        data["contributions"] = or_failure(lambda: leave_one_out(problem, best))
    data["examples"] = or_failure(lambda: show_examples(problem, tasks, best, rows))
    return data


def command_line() -> str | None:
    """The command that made this process, or None if it is not `evogm`."""
    program, *words = sys.argv
    return shlex.join(["evogm", *words]) if Path(program).stem in PROGRAMS else None


def or_failure(compute: Callable[[], dict]) -> dict:
    """What a function gives, with its seconds, or why it gives nothing."""
    start = time.perf_counter()
    try:
        found = compute()
    except Exception as error:  # the run has its result all the same
        reason = f"{type(error).__name__}: {sanitize(str(error))}"
        log.warning("the report lacks a part: %s", reason)
        return {"failure": reason}
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def write_report_data(data: Mapping, out: Path) -> None:
    """Write `report_data.json`.

    :param data: of `collect_report_data`.
    :param out: the run folder.
    """
    atomic_write(out / REPORT_DATA, (json.dumps(to_json(data), indent=1) + "\n").encode())


def add_to_report(
    out: Path, name: str, compute: Callable[[], dict], wanted: int | None = None
) -> bool:
    """Add a part to the `report_data.json` of a finished run.

    :param out: the run folder.
    :param name: of the part.
    :param compute: gives it.
    :param wanted: what the part has to say of itself under this name, if it is not None.
    :return: whether it was missing. It cannot be added where there is no such file.
    """
    path = out / REPORT_DATA
    if not path.is_file():
        return False
    data = read_table(path, json.loads)
    if name in data and (wanted is None or data[name].get("wanted") == wanted):
        return False
    data[name] = or_failure(compute)
    write_report_data(data, out)
    return True


def describe_box(
    problem: LoRAMergeProblem, box: torch.Tensor | None = None
) -> dict[str, list[float]]:
    """The box of the search, by expert.

    :param box: as of `collect_report_data`.
    """
    bounds = problem.box if box is None else box.cpu()
    lower, upper = (problem.groups.by_expert(bound) for bound in bounds)  # (n, g) each
    return {"lower": lower.amin(1).tolist(), "upper": upper.amax(1).tolist()}


def leave_one_out(problem: LoRAMergeProblem, best: torch.Tensor) -> dict:
    """The dev scores of the merge, and of the merge without each expert.

    The merges are evaluated together. One that the search has evaluated is not evaluated again.

    :param best: `(n g,)` effective coefficients of the merge.
    :return: `merge`, its mean scores by task; and `without`, by expert the `scores` of the merge
        without it and the standard errors of the paired differences, by task, or None where it
        could not be scored.
    """
    n = problem.n_experts
    without = problem.groups.by_expert(best).repeat(n, 1, 1)  # (n, n, g)
    without[range(n), range(n)] = 0
    pop = torch.cat([best[None], without.flatten(1)])  # (1 + n, n g)
    merge, *others = score_examples(problem, pop)
    if merge.failure:
        raise RuntimeError(merge.failure)
    by_expert: dict[str, dict | None] = {}
    for expert, found in zip(problem.experts, others, strict=True):
        by_expert[expert.name] = None
        if not found.failure:
            errors = {}
            for task, scores in found.scores.items():
                errors[task] = error_of_difference(merge.scores[task], scores)
            by_expert[expert.name] = {"scores": found.by_task, "errors": errors}
    return {"merge": merge.by_task, "without": by_expert, "evaluations": n}


def error_of_difference(one: Sequence[float], other: Sequence[float]) -> float:
    """The standard error of the mean difference of paired scores; NaN with fewer than two."""
    return spread_error([a - b for a, b in zip(one, other, strict=True)])


def score_examples(problem: LoRAMergeProblem, pop: torch.Tensor) -> list[Evaluation]:
    """Score merges on dev by example. What was evaluated on all examples is not repeated.

    :param pop: a `(P, n g)` tensor of effective coefficients.
    """
    # A pruned merge, and one on a minibatch, has the scores of some examples only.
    are_whole = problem.racing is None and problem.minibatches == 1
    unseen = problem.cache.unseen(pop) if are_whole else pop

    def evaluate(part: torch.Tensor) -> list[Evaluation]:
        found = problem.score_together(part)
        evaluations = []
        for row, point in enumerate(part.tolist()):
            scores = {name: values[row].tolist() for name, values in found.items()}
            evaluations.append(Evaluation(tuple(point), scores, seconds=0.0))
        return evaluations

    scored = evaluate_with_retries(unseen, evaluate, problem.language_model)
    return problem.cache.find(pop, scored)


def show_examples(
    problem: LoRAMergeProblem,
    tasks: RunTasks,
    best: torch.Tensor,
    rows: Sequence[ScoreRow],
) -> dict:
    """Test prompts with the answers of the base, the expert that is best on dev, and the merge.

    :param best: `(n g,)` effective coefficients of the merge.
    :param rows: of the final table, with the scores of test examples.
    """
    expert = best_expert(rows)
    given = problem.with_experts_as_given()
    one_hot = torch.eye(given.n_experts)[expert]
    models = {
        "base": (given, torch.zeros(given.n_coefficients)),
        "expert": (given, problem.groups.expand(one_hot)),
        "merge": (problem, best),
    }
    merge = max(place for place, row in enumerate(rows) if row.kind == "merge")
    places = {"base": 0, "expert": 1 + expert, "merge": merge}
    with_texts = [task for task in tasks.test if has_texts(task)]
    scores = scores_of(rows, places, with_texts)
    by_name = {task.name: task for task in with_texts}
    chosen = choose_examples(scores, CANDIDATES)
    shown: list[dict] = []
    while chosen and len(shown) < PROMPTS:
        count = PROMPTS - len(shown)
        places_now, chosen = chosen[:count], chosen[count:]
        shown += answer_alike(by_name, places_now, models, scores)
    name = problem.experts[expert].name
    return {"expert": name, "counts": count_patterns(scores), "shown": shown}


def has_texts(task: Task) -> bool:
    """Whether a task has prompts to show, and a score of its own for each."""
    if isinstance(task, CustomTask) and not task.scores_by_example:
        return False
    return all(example.prompt.strip() for example in task.examples)


def scores_of(
    rows: Sequence[ScoreRow], places: Mapping[str, int], tasks: Sequence[Task]
) -> dict[str, ByExample]:
    """The test scores by example of some rows.

    :param places: of the rows, by model.
    :param tasks: those whose scores are wanted.
    :raises ValueError: if a row has none.
    """
    scores: dict[str, ByExample] = {}
    for model, place in places.items():
        found = rows[place].examples.get("test", {})
        if not found:
            name = label(rows[place].kind, rows[place].name)
            raise ValueError(f"scores: expected test scores by example of {name}, found none")
        scores[model] = {task.name: found[task.name] for task in tasks}
    return scores


def answer_alike(
    tasks: Mapping[str, Task],
    places: Sequence[tuple[str, int]],
    models: Mapping[str, tuple[LoRAMergeProblem, torch.Tensor]],
    scores: Mapping[str, ByExample],
) -> list[dict]:
    """Examples with the answers of each model.

    Left out are those in which a model scores otherwise in a smaller batch, or token by token, than
    in the final table, because two answers are equally likely up to rounding.

    :param tasks: by name.
    :param places: of the examples, as task and number.
    :param models: problem and `(n g,)` coefficients, by name.
    :param scores: those of the final table, by model and task.
    """
    numbers: dict[str, list[int]] = {}
    for name, index in places:
        numbers.setdefault(name, []).append(index)
    answers: dict[tuple[str, int], dict[str, dict]] = {place: {} for place in places}
    for model, (problem, point) in models.items():
        with as_one_merge(problem.scorer, point) as language_model:
            for name, indices in numbers.items():
                task = tasks[name]
                few = replace(task, examples=tuple(task.examples[index] for index in indices))
                found = score_task(few, language_model).tolist()
                given = answers_of(few, reading_texts(language_model), MOST_TOKENS)
                for index, score, answer in zip(indices, found, given, strict=True):
                    known = scores[model][name][index]
                    if is_alike(known, score, answer.right):
                        text = shorten(answer.text, LONGEST_ANSWER)
                        answers[name, index][model] = {"text": text, "share": answer.share}
    examples = []
    for (name, index), by_model in answers.items():
        if by_model.keys() == models.keys():
            described = describe_example(tasks[name], tasks[name].examples[index])
            described["scores"] = {model: scores[model][name][index] for model in models}
            examples.append({**described, "answers": by_model})
    return examples


def is_alike(known: float, score: float, right: bool | None) -> bool:
    """Whether an answer has the score that the table counts.

    :param known: in the table.
    :param score: of the answer, scored again.
    :param right: whether the text of the answer is right, where that can be read off it.
    """
    if right is not None and abs(float(right) - known) > ALIKE:
        return False
    return abs(score - known) <= ALIKE


def best_expert(rows: Sequence[ScoreRow]) -> int:
    """The number of the expert with the best mean dev score.

    :raises ValueError: if no expert has one.
    """
    scores = []
    for row in rows:
        if row.kind == "expert":
            scores.append(math.nan if row.failure else sum(row.dev.values()) / len(row.dev))
    best = best_places(scores)
    if not best:
        raise ValueError("scores: expected those of an expert, found none")
    return best[0]


def describe_example(task: Task, example: Example) -> dict:
    """What the report says of an example before any answer to it."""
    expected = example.target
    if example.choices:
        expected = f"{example.target}: {dict(example.choices)[example.target]}"
    return {
        "task": task.name,
        "metric": task.metric,
        "id": example.id,
        "prompt": shorten(example.prompt, LONGEST_PROMPT),
        "expected": shorten(expected, LONGEST_ANSWER),
    }


def shorten(text: str, most: int) -> str:
    """A text of at most about so many characters: a long one lacks its middle."""
    if len(text) <= most:
        return text
    head, tail = most // 3, most - most // 3
    return f"{text[:head]} [... {len(text) - most} characters ...] {text[-tail:]}"
