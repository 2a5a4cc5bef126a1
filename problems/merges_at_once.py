"""How many merges are scored together before their results are reported."""

from collections.abc import Sequence

from evox_evogm.problems.functions.function_scorer import functions_of
from evox_evogm.problems.inference.batch_sizes import BATCH_TOKENS, BatchSizes
from evox_evogm.problems.tasks.task import Task

TOKENS_AT_ONCE = 16_384  # of prompts, for all merges that are scored together
PASSES_AT_ONCE = TOKENS_AT_ONCE // BATCH_TOKENS
BLOCKS_OF_RANKS = 16  # times as many merges are scored together where ranks share them


def merges_at_once(tasks: Sequence[Task], tokens: int, sizes: BatchSizes | None = None) -> int:
    """How many merges are scored together before their results are reported.

    :param tokens: of the prompts of all tasks. Functions have none: those that get one merge are
        called before the next, those that get a population with all of it.
    :param sizes: of batches. Where they were measured, so many merges fill several of them.
    """
    if tokens and sizes is not None and sizes.rows is not None:
        examples = sum(len(task.examples) for task in tasks)
        most = max(TOKENS_AT_ONCE, PASSES_AT_ONCE * sizes.tokens) // tokens
        return max(1, most, sizes.rows // examples)
    if tokens:
        return max(1, TOKENS_AT_ONCE // tokens)
    one_by_one = any(not task.population for task in functions_of(tasks))
    return 1 if one_by_one else TOKENS_AT_ONCE
