"""The evaluation of a population in portions: some candidates on some examples each.

How work is cut depends on the work alone, and not on who does it. So a portion makes the same
passes on one rank of several as on the only one.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from evox_evogm.problems.functions.fitness_task import FitnessTask
from evox_evogm.problems.inference.scored_model import ScoredModel
from evox_evogm.problems.tasks.custom_task import CustomTask
from evox_evogm.problems.tasks.requests import cases_or_all, prompts_of
from evox_evogm.problems.tasks.task import Task

PORTIONS = 24  # that 2, 3, 4, 6, 8 and 12 ranks divide
LEAST_TOKENS = 512  # of a portion: smaller ones are mostly the cost of a pass
MOST_TOKENS = 8192  # of a portion: ranks wait for each other as long as one takes
TOKENS_WITHOUT_PROMPT = 256  # what counts for an example without a prompt, such as an image
WITHOUT_ANSWERS = ("choice_likelihood", "gold_log_probability")  # metrics that decode nothing


class Portion(NamedTuple):
    """Some candidates on some examples.

    :param rows: the candidates.
    :param examples: by task name the first example, and the one behind the last.
    """

    rows: tuple[int, ...]
    examples: dict[str, tuple[int, int]]


class Unit(NamedTuple):
    """Examples that stay together: one, or all of a task that is scored as a whole.

    :param task: its name.
    :param first: the first example.
    :param end: the example behind the last.
    :param tokens: of all.
    """

    task: str
    first: int
    end: int
    tokens: int


def cut_work(
    tasks: Sequence[Task],
    candidates: int,
    model: ScoredModel,
    modes: Mapping[str, str],
    portions: int = PORTIONS,
) -> list[Portion]:
    """Cut the evaluation of P candidates on some tasks.

    Examples in unmerged mode are cut first, because candidates share passes. In merged mode those
    of a candidate stay together, as far as there are enough candidates.

    :param modes: of the tasks, by name.
    :param portions: how many there are at least, unless they would be too small.
    """
    rows = tuple(range(candidates))
    cut: list[Portion] = []
    units: dict[str, list[Unit]] = {"unmerged": [], "merged": []}
    for task in tasks:
        if isinstance(task, FitnessTask):
            whole = {task.name: (0, len(task.examples))}
            blocks = [rows] if task.population else [(row,) for row in rows]
            cut += [Portion(block, whole) for block in blocks]
        else:
            units[modes[task.name]] += units_of(task, model)
    for mode, found in units.items():
        if not found:
            continue
        number = portions_of(candidates * sum(unit.tokens for unit in found), portions)
        if mode == "unmerged":
            chunks = chunks_of(found, number)
            blocks = blocks_of(rows, math.ceil(number / len(chunks)))
        else:
            blocks = blocks_of(rows, number)
            chunks = chunks_of(found, math.ceil(number / len(blocks)))
        for block in blocks:
            cut += [Portion(block, chunk) for chunk in chunks]
    return cut


def portions_of(tokens: int, portions: int) -> int:
    """How many portions some work makes.

    :param tokens: of all candidates and examples.
    :param portions: how many are wanted at least.
    """
    most = math.ceil(tokens / LEAST_TOKENS)
    return max(1, min(portions, most), math.ceil(tokens / MOST_TOKENS))


def units_of(task: Task, model: ScoredModel) -> list[Unit]:
    """The examples of a task, with their tokens."""
    prompts = prompts_of(task, model, cases_or_all(task, None))
    new_tokens = 0 if task.metric in WITHOUT_ANSWERS else task.max_new_tokens
    tokens = [len(prompt) + new_tokens for prompt in prompts]
    tokens = tokens or [TOKENS_WITHOUT_PROMPT] * len(task.examples)
    if isinstance(task, CustomTask) and not task.scores_by_example:
        return [Unit(task.name, 0, len(tokens), sum(tokens))]
    return [Unit(task.name, place, place + 1, size) for place, size in enumerate(tokens)]


def chunks_of(units: Sequence[Unit], count: int) -> list[dict[str, tuple[int, int]]]:
    """Examples in up to `count` chunks of about as many tokens, see `Portion.examples`."""
    share = sum(unit.tokens for unit in units) / count
    chunks: list[dict[str, tuple[int, int]]] = [{}]
    filled = 0
    for unit in units:
        if filled >= share * len(chunks):
            chunks.append({})
        first, _ = chunks[-1].get(unit.task, (unit.first, unit.first))
        chunks[-1][unit.task] = first, unit.end
        filled += unit.tokens
    return chunks


def blocks_of(rows: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """Rows in up to `count` blocks, the first of which may have one more than the others."""
    count = min(count, len(rows))
    size, longer = divmod(len(rows), count)
    blocks, start = [], 0
    for number in range(count):
        end = start + size + (number < longer)
        blocks.append(tuple(rows[start:end]))
        start = end
    return blocks
