"""Tasks whose answers are numbers: Spearman's correlation of the answers with the targets.

The correlation is one of all examples together, so that every example has it as its score. Its
margins are the parts of it that the examples have: the product of the standardized ranks of answer
and target. Their mean is the correlation, and a search sees which examples it is made of.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.prompts import Request, Tokens
from evox_evogm.problems.tasks.check_tokens import TokenCheck, naming
from evox_evogm.problems.tasks.custom_task import CustomTask
from evox_evogm.problems.tasks.requests import Case, candidates_of, cases_or_all, gold_request
from evox_evogm.problems.tasks.task import Example

METRIC = "spearman"
NO_NUMBER = 0.0  # in place of an answer that is none, as in FusionBench


@dataclass(frozen=True)
class SpearmanTask(CustomTask):
    """Examples with numbers as targets, of which at least two differ.

    An answer is what is decoded greedily, up to `max_new_tokens`. Where it is no number it counts
    as 0. Where all answers are the same number the correlation is 0.
    """

    def __post_init__(self):
        self._check_types()
        if len(self.examples) < 2:
            self._refuse("examples", "at least two", len(self.examples))
        self._check_ids()
        if self.max_new_tokens < 1:
            self._refuse("max_new_tokens", "at least 1", self.max_new_tokens)
        targets = []
        for example in self.examples:
            number = parse_number(example.target)
            if number is None:
                raise ValueError(
                    f"task {self.name!r}, example {example.id!r}: expected a number as the answer "
                    f"for {METRIC}, found {example.target!r}"
                )
            targets.append(number)
        if len(set(targets)) == 1:
            raise ValueError(
                f"task {self.name!r}: expected answers that differ for {METRIC}, found "
                f"{targets[0]:g} in all {len(targets)} examples"
            )

    @property
    def scores_by_example(self) -> bool:
        return False

    @property
    def may_be_negative(self) -> bool:
        return True

    @property
    def no_derivatives(self) -> str | None:
        return "ranks of decoded numbers have no derivative"

    def score(
        self,
        model: LanguageModel,
        cases: Sequence[Case] | None = None,
        *,
        margins: torch.Tensor | None = None,
        derivatives: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if derivatives is not None:
            raise ValueError(f"task {self.name!r}: {self.no_derivatives}")
        cases = cases_or_all(self, cases)
        candidates = candidates_of(cases)
        texts = model.generate(self.prompts(model, cases), self.max_new_tokens, candidates)
        rows_of: dict[int, list[int]] = {}  # of each candidate
        for row, candidate in enumerate(candidates):
            rows_of.setdefault(candidate, []).append(row)
        scores = torch.zeros(len(cases))
        for rows in rows_of.values():
            answers, targets = [], []
            for row in rows:
                answer = parse_number(texts[row])
                answers.append(NO_NUMBER if answer is None else answer)
                targets.append(float(cases[row].example.target))
            parts = parts_of_correlation(answers, targets)  # (S,)
            scores[rows] = parts.mean().float()
            if margins is not None:
                margins[rows] = parts.float()
        return scores

    def tokenize(self, model: LanguageModel) -> int:
        check = TokenCheck(self, model)
        total = 0
        for example in self.examples:
            with naming(self, example):
                prompt = model.prompt_tokens(example.prompt, chat=self.chat)
            check.add(example, prompt, [])
            total += len(prompt)
        check.finish()
        return total

    def prompts(self, model: LanguageModel, cases: Sequence[Case]) -> list[Tokens]:
        return [model.prompt_tokens(case.example.prompt, chat=self.chat) for case in cases]

    def gold_requests(self, model: LanguageModel) -> list[Request]:
        return [gold_request(self, model, example) for example in self.examples]


def parse_number(text: str) -> float | None:
    """The finite number that a text is, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None


def parts_of_correlation(answers: Sequence[float], targets: Sequence[float]) -> torch.Tensor:
    """The part of each example in Spearman's correlation, which is their mean.

    It is the product of both ranks, standardized; the same numbers share their mean rank.

    :return: an `(S,)` float64 tensor, 0 if all answers or all targets are the same.
    """
    products = torch.ones(len(answers), dtype=torch.float64)
    for values in (answers, targets):
        ranks = mean_ranks(values)
        apart = ranks - ranks.mean()
        std = apart.square().mean().sqrt()
        if std == 0:
            return torch.zeros(len(answers), dtype=torch.float64)
        products = products * apart / std
    return products


def mean_ranks(values: Sequence[float]) -> torch.Tensor:
    """The ranks `(S,)` of numbers; the same numbers have the mean of their ranks."""
    numbers = torch.tensor(list(values), dtype=torch.float64)
    _, group, counts = numbers.unique(return_inverse=True, return_counts=True)
    sizes = counts.to(torch.float64)
    ends = sizes.cumsum(0)  # the last rank of each different number
    return (ends - (sizes - 1) / 2)[group]


def is_spearman(settings: dict) -> bool:
    """Whether the settings of a task want this metric."""
    return settings.get("metric") == METRIC


def check_free_answers(name: str, examples: Sequence[Example]) -> None:
    """Refuse examples with choices, which are answered by keys.

    :raises ValueError: naming the task.
    """
    if any(example.choices for example in examples):
        raise ValueError(
            f"task {name!r}: expected examples without choices for {METRIC}, found some"
        )
