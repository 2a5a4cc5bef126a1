"""Check the tokens of a task against what the base can take, before the first evaluation."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.prompts import Request, Tokens
from evox_evogm.problems.tasks.task import Example, Task, reflection_prompt

log = logging.getLogger(__name__)
GENERATING = ("exact_match", "multiple_choice_generation", "abstain_qa", "spearman")


class LongText(NamedTuple):
    """A prompt with what follows it.

    :param size: its tokens.
    :param example: the id of the example.
    """

    size: int
    example: str


class TokenCheck:
    """Collects the tokens of a task, example by example.

    - A token without a row in the base's embedding is refused.
    - Two questions that the chat template makes one prompt of are refused.
    - Texts longer than the base has positions for are refused. Texts longer than those that it was
      trained on are logged.
    - Answers that join the end of the prompt in one token are logged.
    """

    def __init__(self, task: Task, model: LanguageModel):
        self.task = task
        self.model = model
        self.limits = model.limits
        self.texts: list[LongText] = []
        self.joined: list[str] = []  # ids of examples
        self.questions: dict[Tokens, Example] = {}

    def add(self, example: Example, prompt: Tokens, requests: Sequence[Request]) -> None:
        """Check an example.

        :param prompt: what an answer is decoded from.
        :param requests: prompts and answers whose likelihoods are scored.
        :raises ValueError: naming task and example.
        """
        sizes = [len(prompt)]
        if self.task.metric in GENERATING:
            sizes.append(len(prompt) + self.task.max_new_tokens - 1)  # the last one is not read
        if self.task.metric == "abstain_qa":
            text = reflection_prompt(example.prompt, "")
            second = self.model.prompt_tokens(text, chat=self.task.chat)
            # It holds the answer, and the reply is as long.
            sizes.append(len(second) + 2 * self.task.max_new_tokens - 1)
        for start, answer in requests:
            sizes.append(len(start) + len(answer))
            self.check_rows(example, (*start, *answer))
        if not requests:
            self.check_rows(example, prompt)
        self.texts.append(LongText(max(sizes), example.id))
        if self.task.chat:
            self._check_question(example, prompt)
        if requests and self.model.prompts.joins(example.prompt, chat=self.task.chat):
            self.joined.append(example.id)

    def check_rows(self, example: Example, tokens: Tokens) -> None:
        """Refuse a token without a row in the base's embedding."""
        largest = max(tokens)
        if largest < self.limits.vocabulary:
            return
        text = self.model.tokenizer.convert_ids_to_tokens(largest)
        raise ValueError(
            f"task {self.task.name!r}, example {example.id!r}: expected tokens with a row in the "
            f"base's embedding of {self.limits.vocabulary}, found {text!r} with id {largest}; "
            "use the tokenizer of the base"
        )

    def _check_question(self, example: Example, prompt: Tokens) -> None:
        other = self.questions.setdefault(prompt, example)
        if other.prompt == example.prompt:
            return
        text = self.model.prompts.text(example.prompt, chat=True)
        if text == self.model.prompts.text(other.prompt, chat=True):
            raise ValueError(
                f"task {self.task.name!r}, example {example.id!r}: expected a chat template that "
                f"writes the question, found the same prompt as for example {other.id!r}; set "
                "chat_template_file, or chat: false"
            )

    def finish(self) -> None:
        """Check the lengths of all examples together, and log what is unusual, once.

        :raises ValueError: naming the task and its longest example.
        """
        if not self.texts:
            return
        longest = max(self.texts)
        where = f"task {self.task.name!r}, example {longest.example!r}"
        positions = self.limits.positions
        trained = self.limits.trained
        if positions is not None and longest.size > positions:
            raise ValueError(
                f"{where}: expected at most {positions} tokens, for which the base has positions, "
                f"found {longest.size} with the answer ({self._count_above(positions)} of "
                f"{len(self.texts)} examples are longer); shorten the prompts or max_new_tokens"
            )
        if trained is not None and longest.size > trained:
            self._log_once(
                f"{where}: found {longest.size} tokens with the answer, more than the {trained} "
                f"that the base was trained on ({self._count_above(trained)} of {len(self.texts)} "
                "examples); their scores may say little"
            )
        if self.joined:
            self._log_once(
                f"task {self.task.name!r}, example {self.joined[0]!r}: found a token that holds "
                f"the end of the prompt and the beginning of an answer ({len(self.joined)} of "
                f"{len(self.texts)} examples); the answer is scored from behind as many tokens as "
                "the prompt has"
            )

    def _log_once(self, message: str) -> None:
        """Log a warning unless an earlier check of the same model did."""
        if message not in self.model.prompts.logged:
            self.model.prompts.logged.add(message)
            log.warning(message)

    def _count_above(self, limit: int) -> int:
        return sum(text.size > limit for text in self.texts)


@contextmanager
def naming(task: Task, example: Example) -> Iterator[None]:
    """Inside the block the message of a `ValueError` gets the names of task and example."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"task {task.name!r}, example {example.id!r}: {error}") from error
