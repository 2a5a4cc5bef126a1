"""A cache of evaluations by the weights that coefficients come to in the model."""

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from evox_evogm.problems.adapters.stacked_modules import StackedModule
from evox_evogm.problems.evaluation import Evaluation
from evox_evogm.problems.scalarization import MEAN, Objective

# lambda_k s_k in the model's dtype, for every coefficient and scale that occurs
Key = tuple[float, ...]


class EvaluationCache:
    """Evaluations of merges. Merges whose weights are the same in the model's dtype share one.

    It keeps the only copy of scores and margins by example that a run holds, in arrays.

    :param modules: the stacked experts, by module.
    :param dtype: of the model's weights.
    :param objective: of the evaluations that are found, whatever it was when they were made.
    :param exact: the numbers of coefficients that are not rounded, those of whole models. With them
        no coefficient is.
    """

    def __init__(
        self,
        modules: Mapping[str, StackedModule],
        dtype: torch.dtype,
        objective: Objective = MEAN,
        exact: Sequence[int] = (),
    ):
        coefficients, scales = coefficients_and_scales(modules)
        coefficients += exact
        scales += [1.0] * len(exact)
        self.dtype = torch.float32 if exact else dtype
        self.objective = objective
        self._coefficients = torch.tensor(coefficients, device="cpu")
        self._scales = torch.tensor(scales, device="cpu")
        self._evaluations: dict[Key, Evaluation] = {}
        self._recommended: set[Key] = set()  # evaluated at the end of a search, not in it
        self._searched: set[Key] = set()  # evaluated in a search, also in vain

    def unseen(self, pop: torch.Tensor) -> torch.Tensor:
        """The merges of a population that have no evaluation, each once.

        :param pop: a `(P, n g)` tensor of effective coefficients.
        :return: a `(U, n g)` tensor, in the order of `pop`.
        """
        rows: dict[Key, int] = {}
        for row, key in enumerate(self._keys(pop)):
            if key not in self._evaluations:
                rows.setdefault(key, row)
        return pop[list(rows.values())]

    def first_of_each(self, pop: torch.Tensor) -> list[int]:
        """The rows of a population whose weights no earlier row has.

        :param pop: a `(P, n g)` tensor of effective coefficients.
        """
        rows: dict[Key, int] = {}
        for row, key in enumerate(self._keys(pop)):
            rows.setdefault(key, row)
        return list(rows.values())

    def find(self, pop: torch.Tensor, new: Sequence[Evaluation] = ()) -> list[Evaluation]:
        """The evaluation of every merge of a population.

        :param pop: a `(P, n g)` tensor of effective coefficients.
        :param new: evaluations that are not in the cache.
        :return: P evaluations with the coefficients of their rows. The seconds of a new one stand
            in the first row that it belongs to; all other rows have 0.
        """
        new_by_key = self._by_key(new)
        uncounted = set(new_by_key)
        found = []
        for coefficients, key in zip(pop.tolist(), self._keys(pop), strict=True):
            evaluation = new_by_key.get(key) or _unpacked(self._evaluations[key])
            seconds = evaluation.seconds if key in uncounted else 0.0
            uncounted.discard(key)
            evaluation = replace(evaluation, objective=self.objective)
            found.append(replace(evaluation, coefficients=tuple(coefficients), seconds=seconds))
        return found

    def add(self, evaluations: Sequence[Evaluation]) -> None:
        """Keep evaluations, also of merges that failed: they are not tried again."""
        for key, evaluation in self._by_key(evaluations).items():
            self._evaluations[key] = _packed(evaluation)
            self._searched.add(key)

    def load_history(self, records: Iterable[Mapping]) -> None:
        """Keep the evaluations of an earlier process, except those that failed.

        :param records: made by `Evaluation.as_record`. A point that ended a search with a smaller
            budget has the entry `recommended`, and does not count in `best`.
        """
        succeeded: list[Evaluation] = []
        recommended: list[Evaluation] = []
        failed: list[Evaluation] = []
        for record in records:
            evaluation = Evaluation.from_record(record)
            if evaluation.failure and not record.get("recommended"):
                failed.append(evaluation)
            elif not evaluation.failure:
                kept = recommended if record.get("recommended") else succeeded
                kept.append(_packed(evaluation))
        for key, evaluation in self._by_key(succeeded).items():
            self._evaluations.setdefault(key, evaluation)
        self._searched |= self._by_key([*succeeded, *failed]).keys()
        for key, evaluation in self._by_key(recommended).items():
            if key not in self._evaluations:
                self._evaluations[key] = evaluation
                self._recommended.add(key)

    def searched(self, besides: torch.Tensor) -> int:
        """How many merges a search has evaluated, also in vain.

        :param besides: a `(P, n g)` tensor of merges that are left out.
        """
        return len(self._searched - set(self._keys(besides)))

    @property
    def has_scores(self) -> bool:
        """Whether a merge that a search has evaluated did not fail."""
        for key, evaluation in self._evaluations.items():
            if evaluation.scores and key not in self._recommended:
                return True
        return False

    def best(self, besides: torch.Tensor) -> Evaluation | None:
        """The best complete evaluation, or None.

        :param besides: a `(P, n g)` tensor of merges that are left out.
        """
        left_out = set(self._keys(besides))
        complete = []
        for key, evaluation in self._evaluations.items():
            if key in left_out or key in self._recommended:
                continue
            if evaluation.scores and evaluation.is_whole:
                complete.append(evaluation)
        best = max(complete, key=lambda evaluation: evaluation.score, default=None)
        return None if best is None else _unpacked(best)

    def clear(self) -> None:
        """Forget all evaluations."""
        self._evaluations.clear()
        self._recommended.clear()
        self._searched.clear()

    def _keys(self, pop: torch.Tensor) -> list[Key]:
        coefficients = pop.detach().to("cpu", torch.float32)
        weights = coefficients[:, self._coefficients] * self._scales
        rounded = weights.to(self.dtype)
        return [_comparable(row) for row in rounded.tolist()]

    def _by_key(self, evaluations: Sequence[Evaluation]) -> dict[Key, Evaluation]:
        """Evaluations by their keys, of each key the first."""
        by_key: dict[Key, Evaluation] = {}
        if not evaluations:
            return by_key
        points = [evaluation.coefficients for evaluation in evaluations]
        pop = torch.tensor(points, dtype=torch.float64, device="cpu")
        for key, evaluation in zip(self._keys(pop), evaluations, strict=True):
            by_key.setdefault(key, evaluation)
        return by_key


def coefficients_and_scales(
    modules: Mapping[str, StackedModule],
) -> tuple[list[int], list[float]]:
    """The indices of coefficients and the scales: one entry per pair that occurs."""
    pairs: set[tuple[int, float]] = set()
    for module in modules.values():
        pairs.update(zip(module.coefficient.tolist(), module.scale.tolist(), strict=True))
    coefficients, scales = [], []
    for coefficient, scale in sorted(pairs):
        coefficients.append(coefficient)
        scales.append(scale)
    return coefficients, scales


def _comparable(weights: Sequence[float]) -> Key:
    """The weights as a key, in which every NaN is the same object: other NaN are never equal."""
    return tuple(math.nan if math.isnan(weight) else weight for weight in weights)


def _packed(evaluation: Evaluation) -> Evaluation:
    """The evaluation with its numbers by example in arrays.

    A number takes 32 bytes in a tuple, and 4 in an array.
    """
    return replace(
        evaluation,
        scores={name: _as_array(values) for name, values in evaluation.scores.items()},
        margins={name: _as_array(values) for name, values in evaluation.margins.items()},
        gradient=_as_array(evaluation.gradient),
    )


def _unpacked(evaluation: Evaluation) -> Evaluation:
    """The evaluation that was packed."""
    return replace(
        evaluation,
        scores={name: tuple(values) for name, values in evaluation.scores.items()},
        margins={name: tuple(values) for name, values in evaluation.margins.items()},
        gradient=tuple(evaluation.gradient),
    )


def _as_array(values: Sequence[float]) -> Sequence[float]:
    """The same numbers: in float32, as a model computes them, unless this would round one."""
    single = array("f", values)
    return single if single == array("d", values) else array("d", values)
