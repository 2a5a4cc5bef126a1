"""Scores of a task by the harness's own evaluation, with its own HFLM in place of our batches."""

import copy
from collections.abc import Mapping
from contextlib import redirect_stderr
from io import StringIO
from typing import TYPE_CHECKING

from evox_evogm.problems.inference.base_model import ready_to_score
from evox_evogm.problems.tasks.harness.package import seeded_as_by_the_harness
from evox_evogm.problems.tasks.harness.source import HarnessSource
from evox_evogm.problems.tasks.harness.task import HarnessTask

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_ROWS = 8


def score_by_hflm(
    task: HarnessTask,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    chat_arguments: Mapping | None = None,
) -> float:
    """The score of a model by `lm_eval.evaluator.evaluate` on the documents of a task.

    :param task: with all its documents.
    :param model: as it is, perhaps with an adapter that peft loaded.
    :param tokenizer: of the model; a copy of it is used.
    :param chat_arguments: for the chat template.
    :return: better when higher: a metric that is better when lower has a minus, as in the search.
    """
    from lm_eval.models.huggingface import HFLM

    # HFLM gives the tokenizer a padding token.
    with ready_to_score(model), seeded_as_by_the_harness(), redirect_stderr(StringIO()):
        hflm = HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=BATCH_ROWS,
            chat_template_args=dict(chat_arguments or {}),
        )
        total = 0.0
        for source in task.sources:
            total += len(source.documents) * _score(source, hflm)
    return total / sum(len(source.documents) for source in task.sources)


def _score(source: HarnessSource, hflm) -> float:
    """The score of one harness task."""
    from lm_eval.evaluator import evaluate

    prompting = source.prompting
    source.task.set_fewshot_seed(seed=prompting.fewshot_seed)
    found = evaluate(
        hflm,
        {source.name: source.task},
        bootstrap_iters=0,
        log_samples=False,
        system_instruction=prompting.system_instruction,
        apply_chat_template=prompting.chat,
        fewshot_as_multiturn=prompting.chat,
        confirm_run_unsafe_code=True,  # it was confirmed when the task was read
    )
    results = found["results"][source.name]
    suffix = f",{source.metric.filter.name}"
    scores = {
        name.removesuffix(suffix): value
        for name, value in results.items()
        if name.endswith(suffix) and not name.endswith(f"_stderr{suffix}")
    }
    name = source.metric.name if source.metric.name in scores else next(iter(scores))
    return source.metric.sign * float(scores[name])
