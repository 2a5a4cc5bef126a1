"""A task of the LM Evaluation Harness as data: documents, what they ask, and a metric."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from evox_evogm.problems.inference.derivatives import log_probabilities, soft_margins
from evox_evogm.problems.inference.kinds_of_base import check_causal
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.prompts import Request, Tokens
from evox_evogm.problems.tasks.check_tokens import TokenCheck
from evox_evogm.problems.tasks.custom_task import CustomTask
from evox_evogm.problems.tasks.harness.answers import ask
from evox_evogm.problems.tasks.harness.example import place_of, source_of, tokens_of
from evox_evogm.problems.tasks.harness.metric import BY_SIGN, CHOICE, GREEDY, TOGETHER
from evox_evogm.problems.tasks.harness.package import PACKAGE
from evox_evogm.problems.tasks.harness.scoring import score_answers
from evox_evogm.problems.tasks.harness.source import HarnessSource
from evox_evogm.problems.tasks.metrics import long_common_prefix
from evox_evogm.problems.tasks.requests import Case, candidates_of, cases_or_all


@dataclass(frozen=True)
class HarnessTask(CustomTask):
    """A task of the harness, or several that are scored together.

    :param settings: with which it was read, as names and values, and what it was read by.
    :param left_out: how many documents are not in dev because they are in test.
    """

    settings: tuple[tuple[str, object], ...] = ()
    left_out: int = field(default=0, repr=False)

    def __post_init__(self):
        if not self.examples:
            self._refuse("examples", "at least one document", "none")
        self._check_ids()

    @property
    def sources(self) -> list[HarnessSource]:
        """The harness tasks of the documents."""
        return list(dict.fromkeys(source_of(example) for example in self.examples))

    @property
    def kind(self) -> str:
        """Of the metric, see `metric.py`; that of every task of a group."""
        return source_of(self.examples[0]).metric.kind

    @property
    def counts_by_sign(self) -> bool:
        return source_of(self.examples[0]).metric.by_sign

    @property
    def scores_by_example(self) -> bool:
        return self.kind != TOGETHER

    @property
    def may_be_negative(self) -> bool:
        return source_of(self.examples[0]).metric.sign < 0

    @property
    def trainable(self) -> bool:
        return self.kind in BY_SIGN

    @property
    def no_derivatives(self) -> str | None:
        if self.kind in (CHOICE, GREEDY):
            return None
        return f"its metric {self.metric} is not one of log-likelihoods with a margin"

    @property
    def packages(self) -> tuple[str, ...]:
        return (PACKAGE,)

    def form(self, model: LanguageModel) -> tuple:
        ways: set[object] = set()
        prompts = []
        for example in self.examples:
            tokens = source_of(example).tokens(model)[place_of(example)]
            ways.update(found.generation or "likelihood" for found in tokens)
            prompts.append(tokens[0].first_prompt)
        return (PACKAGE, self.kind, frozenset(ways), long_common_prefix(prompts))

    def tokenize(self, model: LanguageModel) -> int:
        check_causal(model.model, f"task {self.name!r}", "give its questions as json_lines")
        check = TokenCheck(self, model)
        total = 0
        for example in self.examples:
            try:
                tokens = source_of(example).tokens(model)[place_of(example)]
            except ValueError as error:
                raise ValueError(f"task {self.name!r}: {error}") from error
            for instance in tokens:
                for row in instance.rows:
                    check.check_rows(example, row)
                    total += len(row)
        return total

    def prompts(self, model: LanguageModel, cases: Sequence[Case]) -> list[Tokens]:
        found = []
        for tokens in tokens_of(model, cases):
            first = tokens[0]
            # A whole text has no prompt of its own.
            found.append(first.rows[0] if first.is_rolling else first.first_prompt)
        return found

    def gold_requests(self, model: LanguageModel) -> list[Request]:
        requests: list[Request] = []
        for source in self.sources:
            places = [place_of(one) for one in self.examples if source_of(one) is source]
            try:
                requests += source.gold_requests(model, places)
            except ValueError as error:
                raise ValueError(f"task {self.name!r}: {error}") from error
        return requests

    def score(
        self,
        model: LanguageModel,
        cases: Sequence[Case] | None = None,
        *,
        margins: torch.Tensor | None = None,
        derivatives: torch.Tensor | None = None,
    ) -> torch.Tensor:
        cases = cases_or_all(self, cases)
        documents = tokens_of(model, cases)
        derivative_of = None
        if derivatives is not None:
            if self.no_derivatives is not None:
                raise ValueError(f"task {self.name!r}: {self.no_derivatives}")
            derivative_of = log_probabilities if self.kind == CHOICE else soft_margins
        answered = ask(
            model,
            documents,
            candidates_of(cases),
            only_values=self.kind == CHOICE,
            derivative_of=derivative_of,
        )
        return score_answers(cases, documents, answered, margins, derivatives)
