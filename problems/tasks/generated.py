"""Greedy answers as the protocol of a task reads them."""

from collections.abc import Callable, Sequence

from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.tasks.published import clean_output
from evox_evogm.problems.tasks.task import Task


def generated_answers(
    task: Task,
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    candidates: Sequence[int],
    should_stop: Callable[[int, str], bool] | None = None,
    forced_tokens: Sequence[Sequence[int]] | None = None,
    may_stop: Callable[[int, int], bool] | None = None,
) -> list[str]:
    """The greedy answers to N prompts: with protocol `ours` as they are, else cleaned.

    :param prompts: in tokens.
    :param candidates: for each prompt its candidate.
    :param should_stop: takes the number of a prompt and its text so far; true ends the text. For
        protocol `ours` only: elsewhere what follows decides what counts of a text.
    :param forced_tokens: for each prompt the first tokens of its answer, where they are known.
    :param may_stop: takes the number of a prompt and the last token of its text; false says that
        `should_stop` would be.
    """
    if task.protocol == "ours":
        return model.generate(
            prompts,
            task.max_new_tokens,
            candidates,
            should_stop,
            forced_tokens,
            may_stop=may_stop,
        )
    texts = model.generate(prompts, task.max_new_tokens, candidates, keep_special=True)
    return [clean_output(text, model.tokenizer) for text in texts]
