"""What whole models add to the base: sum_k lambda_k (theta_k - theta_pre), the same for all merges.

The sum is made in float32, for some rows of a weight at a time, and rounded once. A merge with a
single coefficient of 1 takes the expert's weights as they are, so that it equals the expert bit for
bit. Where a merge changes nothing the base's weights stay as they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from evox_evogm.problems.adapters.groups import Groups
from evox_evogm.problems.adapters.layers import weight_of
from evox_evogm.problems.adapters.read_adapter import Expert
from evox_evogm.problems.checkpoints.base_weights import BaseWeights
from evox_evogm.problems.checkpoints.checkpoint_files import at_rows, rows_of
from evox_evogm.problems.checkpoints.full_checkpoint import module_of

Part = tuple[torch.Tensor, float]  # a weight of an expert, and its coefficient


@dataclass(frozen=True)
class Differences:
    """The weights of all experts that are whole models.

    :param base: the weights that they differ from.
    :param experts: by the base's name of a weight, the number of the coefficient of each expert
        that has another one, and that weight. It must not be written to.
    """

    base: BaseWeights
    experts: Mapping[str, Sequence[tuple[int, torch.Tensor]]]

    @property
    def coefficients(self) -> list[int]:
        """The numbers of all coefficients that change a weight."""
        found = {number for parts in self.experts.values() for number, _ in parts}
        return sorted(found)

    def without(self, model: torch.nn.Module, modules: Sequence[str]) -> list[str]:
        """The modules whose weights are in no whole model, and are copied for adapters."""
        kept = {id(self.base.parameters[name]) for name in self.experts}
        return [name for name in modules if id(weight_of(model, name)) not in kept]

    def parts(self, name: str, coefficients: torch.Tensor) -> list[Part]:
        """What a merge adds to a weight: the experts whose coefficient is not 0.

        :param name: of the weight.
        :param coefficients: an `(n g,)` tensor of effective coefficients, on the CPU.
        """
        found = []
        for number, tensor in self.experts.get(name, ()):
            coefficient = float(coefficients[number].to(torch.float32))
            if coefficient:
                found.append((tensor, coefficient))
        return found

    def chunks(
        self, name: str, parts: Sequence[Part], device: torch.device
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """A merged weight, some rows at a time.

        :param name: of the weight.
        :param parts: what is added to the base's.
        :param device: of the result.
        :return: slices of the first dimension, and these rows in float32; in float64 if a weight
            is. The next rows take the memory of these.
        """
        base = self.base.kept[name]
        dtype = torch.float32
        for tensor in (base, *(tensor for tensor, _ in parts)):
            dtype = torch.promote_types(dtype, tensor.dtype)
        if len(parts) == 1 and parts[0][1] == 1.0:
            base, parts = parts[0][0], []  # bit for bit the expert
        slices = list(rows_of(base, device))
        shape = (3, *at_rows(base, slices[0]).shape)
        memory = torch.empty(shape, dtype=dtype, device=device)
        for rows in slices:
            original = at_rows(base, rows)
            own, difference, total = memory[:, : len(original)] if base.ndim else memory
            own.copy_(original)
            total.copy_(own)
            for tensor, coefficient in parts:
                difference.copy_(at_rows(tensor, rows)).sub_(own)
                total.add_(difference, alpha=coefficient)
            yield rows, total

    @torch.no_grad()
    def weight(self, name: str, coefficients: torch.Tensor) -> torch.Tensor:
        """A weight of a merge in float32 on the CPU, without what adapters add.

        :param coefficients: an `(n g,)` tensor of effective coefficients, on the CPU.
        """
        whole = torch.empty(self.base.kept[name].shape)
        parts = self.parts(name, coefficients)
        for rows, total in self.chunks(name, parts, torch.device("cpu")):
            at_rows(whole, rows).copy_(total)
        return whole


def differences_of(experts: Sequence[Expert], groups: Groups | None) -> Differences | None:
    """The weights of the experts that are whole models, or None where there are none.

    :param experts: all n, as `fit_experts` returns them.
    :param groups: of the modules; one by default.
    """
    base = None
    weights: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for index, expert in enumerate(experts):
        if expert.checkpoint is None:
            continue
        base = expert.checkpoint.base
        for name, tensor in expert.checkpoint.tensors.items():
            number = index
            if groups is not None:
                number = index * groups.count + groups.of_module[module_of(name)]
            weights.setdefault(name, []).append((number, tensor))
    return None if base is None else Differences(base, weights)
