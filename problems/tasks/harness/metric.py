"""How answers become scores: the filter and the metric of a harness task, and margins beside them.

| kind | metric | margin of a document |
| --- | --- | --- |
| `choice` | acc, acc_norm, acc_bytes, acc_mutual_info of choices | right less the largest other |
| `greedy` | acc of a log-likelihood, exact_match of choices | least lead of a token of the target |
| `zero or one` | exact_match of texts | 1 or -1 |
| `number` | others that are averaged over documents | the score |
| `together` | perplexity, bleu, f1 of a data set and the like | the score of all documents |

The first three count by their sign.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from evox_evogm.problems.tasks.margins import LEAST_MARGIN

CHOICE, GREEDY, ZERO_OR_ONE, NUMBER, TOGETHER = (
    "choice",
    "greedy",
    "zero or one",
    "number",
    "together",
)
OF_CHOICES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
BY_SIGN = (CHOICE, GREEDY, ZERO_OR_ONE)


class Choices(NamedTuple):
    """The choices of a document.

    :param right: the places of the right ones.
    :param lengths: what the log-likelihood of each is divided by.
    """

    right: tuple[int, ...]
    lengths: tuple[float, ...]


class HarnessMetric:
    """A metric of a harness task with the filter of its answers.

    :param task: the harness's own object.
    :param name: of the metric; by default the first of the task that is better when higher.
    :param filter: the name of the filter; by default the first of the task.
    :raises ValueError: if the task has no such metric or filter.
    """

    def __init__(self, task, name: str | None = None, filter: str | None = None):
        self.task = task
        self.better_higher: Mapping[str, bool] = task.higher_is_better()
        names = list(task.aggregation())
        preferred = [known for known in names if self.better_higher.get(known, True)]
        self.all_names = frozenset(names)
        self.name: str = _one_of(names, name, (preferred or names)[0], "metric")
        by_name = {found.name: found for found in task._filters}
        self.filter = by_name[_one_of(list(by_name), filter, next(iter(by_name)), "filter")]
        self.sign = 1.0 if self.better_higher.get(self.name, True) else -1.0
        self.aggregate: Callable = task.aggregation()[self.name]
        self.kind = self._find_kind()
        self.choices: list[Choices] = []
        self._gold_texts: list[str] = []

    @property
    def label(self) -> str:
        """The metric with its filter, as the harness writes them."""
        return self.name if self.filter.name == "none" else f"{self.name},{self.filter.name}"

    @property
    def by_sign(self) -> bool:
        """Whether margins count by being above 0."""
        return self.kind in BY_SIGN

    def _find_kind(self) -> str:
        from lm_eval.api.metrics import mean
        from lm_eval.api.task import ConfigurableTask

        if self.aggregate not in (mean, np.mean):
            return TOGETHER
        scores_itself = type(self.task).process_results is not ConfigurableTask.process_results
        if scores_itself or callable(self.task.config.process_results):
            return NUMBER
        asked = self.task.OUTPUT_TYPE
        if asked == "multiple_choice" and self.name in OF_CHOICES:
            return CHOICE
        if (asked, self.name) in (("loglikelihood", "acc"), ("multiple_choice", "exact_match")):
            return GREEDY
        if (asked, self.name) == ("generate_until", "exact_match"):
            return ZERO_OR_ONE
        return NUMBER

    def read_documents(self, documents: Sequence[Any], instances: Sequence[Sequence[Any]]) -> None:
        """Note the right answers of the documents.

        :param instances: the requests of each.
        """
        for document, of_document in zip(documents, instances, strict=True):
            if self.task.OUTPUT_TYPE == "multiple_choice":
                choices = self.task.doc_to_choice(document)
                found = Choices(self._right(document, choices), self._lengths(choices))
                self.choices.append(found)
                first = found.right[0] if found.right else 0
                self._gold_texts.append(of_document[first].args[1].strip())
            else:
                self._gold_texts.append(self._target(document))

    def _right(self, document, choices: Sequence[str]) -> tuple[int, ...]:
        """The places of the right choices, as `process_results` of the harness has them."""
        task = self.task
        gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
        places = []
        for entry in gold if isinstance(gold, list) else [gold]:
            if isinstance(entry, str):
                entry = choices.index(entry) if entry in choices else -1
            if 0 <= entry < len(choices):
                places.append(int(entry))
        return tuple(places)

    def _lengths(self, choices: Sequence[str]) -> tuple[float, ...]:
        if self.name == "acc_norm":
            return tuple(float(max(1, len(choice))) for choice in choices)
        if self.name == "acc_bytes":
            return tuple(float(max(1, len(choice.encode()))) for choice in choices)
        return (1.0,) * len(choices)

    def _target(self, document) -> str:
        target = self.task.doc_to_target(document)
        if self.task.config.doc_to_choice is not None and isinstance(target, int):
            target = self.task.doc_to_choice(document)[target]
        if isinstance(target, list):
            target = target[0] if target else ""
        return str(target).strip()

    def gold_text(self, place: int) -> str:
        """The text of a right answer, or what stands in its place."""
        return self._gold_texts[place] or "(a text that the harness scores)"

    def gold_instance(self, place: int) -> int:
        """Which request of a document holds the right answer.

        :raises ValueError: if none does.
        """
        if self.task.OUTPUT_TYPE == "generate_until" and not self._gold_texts[place]:
            raise ValueError(f"document {place}: expected a right answer, found none")
        right = self.choices[place].right if self.choices else (0,)
        if not right:
            raise ValueError(f"document {place}: expected a right choice, found none")
        return right[0]

    def scores(self, values: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Scores of documents, better when higher.

        :param values: what `process_results` of the harness gave for each.
        :return: a number each. Where the metric is one of all documents together, each is that.
        """
        of_metric = self._of_metric(values)
        if self.kind != TOGETHER:
            if len(of_metric) < len(values):
                expected = f"expected {self.name} of all {len(values)} documents"
                raise RuntimeError(f"metric: {expected}, found that {len(of_metric)} have it")
            return self.sign * np.asarray(of_metric, dtype=np.float64)
        if not of_metric:
            return np.full(len(values), math.nan)
        return np.full(len(values), self.sign * float(self.aggregate(of_metric)))

    def _of_metric(self, values: Sequence[Mapping[str, Any]]) -> list[Any]:
        """What `process_results` gave for this metric, of the documents that have it."""
        of_metric = []
        for found in values:
            if self.name in found:
                of_metric.append(found[self.name])
            elif len(found) == 1 and self.all_names.isdisjoint(found):
                of_metric.extend(found.values())  # a function names it otherwise, as pass@1
        return of_metric

    def find_missing(self, values: Sequence[Mapping[str, Any]]) -> None:
        """A metric that only some documents have is one of all documents together.

        :param values: as of `scores`, of all documents, whatever their answers.
        """
        if 0 < len(self._of_metric(values)) < len(values):
            self.kind = TOGETHER

    def margin(
        self, place: int, score: float, log_likelihoods: Sequence[float], leads: Sequence[float]
    ) -> float:
        """By how much a document is right; its sign is that of the score.

        :param score: of the document.
        :param log_likelihoods: of its requests.
        :param leads: of its requests, the least lead of a token.
        """
        if any(map(math.isnan, log_likelihoods)):
            return math.nan  # a broken merge, whatever its score
        if self.kind == ZERO_OR_ONE:
            return 2 * score - 1
        if self.kind == CHOICE:
            values = self._values(place, log_likelihoods)
            size = _lead(values, self.choices[place].right)
        elif self.kind == GREEDY:
            size = leads[self.leading_instance(place, leads)]
        else:
            return score
        return max(abs(size), LEAST_MARGIN) if score > 0.5 else -abs(size)

    def leading_instance(self, place: int, leads: Sequence[float]) -> int:
        """The request of a document whose lead is its margin, where that is a lead of tokens."""
        right = self.choices[place].right if self.choices else (0,)
        return max(right, key=lambda number: leads[number], default=0)

    def _values(self, place: int, log_likelihoods: Sequence[float]) -> list[float]:
        """What the choices of a document are compared by."""
        lengths = self.choices[place].lengths
        count = len(lengths)
        values = [found / by for found, by in zip(log_likelihoods, lengths, strict=False)]
        if self.name == "acc_mutual_info":
            alone = log_likelihoods[count:]  # each choice without its question
            values = [value - other for value, other in zip(values, alone, strict=True)]
        return values

    def lead_weights(self, place: int, log_likelihoods: Sequence[float]) -> torch.Tensor:
        """The derivatives of a smooth margin by the log-likelihoods `(R,)` of a document.

        The margin is the largest right value less the log of the summed exponentials of the others.
        """
        weights = torch.zeros(len(log_likelihoods))
        right, lengths = self.choices[place]
        count = len(lengths)
        values = torch.tensor(self._values(place, log_likelihoods))
        if right:
            weights[max(right, key=lambda number: values[number])] = 1.0
        others = [number for number in range(count) if number not in right]
        weights[others] -= values[others].softmax(0)
        of_choices = weights[:count].clone()
        weights[:count] /= torch.tensor(lengths)
        if self.name == "acc_mutual_info":
            weights[count:] = -of_choices
        return weights


def _lead(values: Sequence[float], right: Sequence[int]) -> float:
    """By how much the largest right value is ahead of the largest other one."""
    largest_right = max((values[number] for number in right), default=-math.inf)
    others = [value for number, value in enumerate(values) if number not in right]
    largest_other = max(others, default=-math.inf)
    lead = largest_right - largest_other
    return lead if math.isfinite(lead) else 0.0


def _one_of(names: Sequence[str], wanted: str | None, default: str, what: str) -> str:
    """The wanted name, or the default.

    :raises ValueError: if the wanted one is unknown, with the nearest.
    """
    if wanted is None:
        return default
    if wanted in names:
        return wanted
    near = difflib.get_close_matches(wanted, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what}: expected one of {', '.join(names)}, found {wanted!r}{hint}")
