"""A cache of evaluations by the weights that coefficients come to in the model."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from evox_evogm.problems.adapters.merging import StackedModule
from evox_evogm.problems.evaluation import Evaluation

Key = tuple[float, ...]  # lambda_k s_k in the model's dtype, for every expert and scale that occurs


class EvaluationCache:
    """Evaluations of merges. Merges whose weights are the same in the model's dtype share one.

    :param modules: the stacked experts, by module.
    :param dtype: of the model's weights.
    """

    def __init__(self, modules: Mapping[str, StackedModule], dtype: torch.dtype):
        experts, scales = experts_and_scales(modules)
        self.dtype = dtype
        self._experts = torch.tensor(experts, device="cpu")
        self._scales = torch.tensor(scales, device="cpu")
        self._evaluations: dict[Key, Evaluation] = {}

    def unseen(self, pop: torch.Tensor) -> torch.Tensor:
        """The merges of a population that have no evaluation, each once.

        :param pop: a `(P, n)` tensor of effective coefficients.
        :return: a `(U, n)` tensor, in the order of `pop`.
        """
        rows: dict[Key, int] = {}
        for row, key in enumerate(self._keys(pop)):
            if key not in self._evaluations:
                rows.setdefault(key, row)
        return pop[list(rows.values())]

    def find(self, pop: torch.Tensor, new: Sequence[Evaluation] = ()) -> list[Evaluation]:
        """The evaluation of every merge of a population.

        :param pop: a `(P, n)` tensor of effective coefficients.
        :param new: evaluations that are not in the cache.
        :return: P evaluations with the coefficients of their rows. The seconds of a new one stand
            in the first row that it belongs to; all other rows have 0.
        """
        new_by_key = self._by_key(new)
        uncounted = set(new_by_key)
        found = []
        for coefficients, key in zip(pop.tolist(), self._keys(pop), strict=True):
            evaluation = new_by_key[key] if key in new_by_key else self._evaluations[key]
            seconds = evaluation.seconds if key in uncounted else 0.0
            uncounted.discard(key)
            found.append(replace(evaluation, coefficients=tuple(coefficients), seconds=seconds))
        return found

    def add(self, evaluations: Sequence[Evaluation]) -> None:
        """Keep evaluations, also of merges that failed: they are not tried again."""
        self._evaluations |= self._by_key(evaluations)

    def load_history(self, records: Iterable[Mapping]) -> None:
        """Keep the evaluations of an earlier process, except those that failed.

        :param records: made by `Evaluation.as_record`.
        """
        succeeded = []
        for record in records:
            evaluation = Evaluation.from_record(record)
            if not evaluation.failure:
                succeeded.append(evaluation)
        for key, evaluation in self._by_key(succeeded).items():
            self._evaluations.setdefault(key, evaluation)

    def best(self, besides: torch.Tensor) -> Evaluation | None:
        """The best complete evaluation, or None.

        :param besides: a `(P, n)` tensor of merges that are left out.
        """
        left_out = set(self._keys(besides))
        complete = []
        for key, evaluation in self._evaluations.items():
            if key not in left_out and evaluation.scores and evaluation.estimate is None:
                complete.append(evaluation)
        return max(complete, key=lambda evaluation: evaluation.score, default=None)

    def clear(self) -> None:
        """Forget all evaluations."""
        self._evaluations.clear()

    def _keys(self, pop: torch.Tensor) -> list[Key]:
        coefficients = pop.detach().to("cpu", torch.float32)
        weights = coefficients[:, self._experts] * self._scales
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


def experts_and_scales(modules: Mapping[str, StackedModule]) -> tuple[list[int], list[float]]:
    """The indices of experts and their scales: one entry per expert and scale that occurs."""
    pairs: set[tuple[int, float]] = set()
    for module in modules.values():
        pairs.update(zip(module.expert.tolist(), module.scale.tolist(), strict=True))
    experts, scales = [], []
    for expert, scale in sorted(pairs):
        experts.append(expert)
        scales.append(scale)
    return experts, scales


def _comparable(weights: Sequence[float]) -> Key:
    """The weights as a key, in which every NaN is the same object: other NaN are never equal."""
    return tuple(math.nan if math.isnan(weight) else weight for weight in weights)
