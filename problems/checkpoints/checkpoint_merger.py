"""Puts merges with whole models into the weights of the base, one after another."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.adapters.layers import keeps_inputs_first, weight_of
from evox_evogm.problems.adapters.stacked_modules import StackedModule
from evox_evogm.problems.adapters.weight_merger import WeightMerger
from evox_evogm.problems.checkpoints.checkpoint_files import at_rows
from evox_evogm.problems.checkpoints.differences import Differences
from evox_evogm.problems.checkpoints.fit_checkpoint import names_of_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CheckpointMerger(WeightMerger):
    """A `WeightMerger` of whole models and adapters.

    A weight that both change is summed in float32 and rounded once. A weight that a merge leaves
    as it is, and the merge before it left too, takes no time.

    :param model: the base model.
    :param modules: the adapters, as `stack_experts` returns them.
    :param differences: the whole models.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        modules: Mapping[str, StackedModule],
        differences: Differences,
    ):
        self.differences = differences
        self.parameters = {name: model.get_parameter(name) for name in differences.experts}
        names = {id(weight): name for name, weight in self.parameters.items()}
        self.changed: set[str] = set()  # weights that are not the base's now
        self.adapters: dict[str, tuple[str, StackedModule]] = {}  # by the name of the weight
        sharing = names_of_parameters(model)
        own, hooked = {}, {}
        for name, module in modules.items():
            weight = weight_of(model, name)
            if id(weight) not in names:
                own[name] = module
            elif len(sharing[id(weight)]) > 1 or weight.dtype != module.a.dtype:
                hooked[name] = module  # as in `WeightMerger`
            else:
                self.adapters[names[id(weight)]] = name, module
        super().__init__(model, own)
        self.unchanged |= hooked
        self.modules = modules

    @torch.no_grad()
    def load(self, coefficients: torch.Tensor) -> None:
        super().load(coefficients)
        numbers = coefficients.cpu()  # once, as every copy waits for the device
        for name, parameter in self.parameters.items():
            parts = self.differences.parts(name, numbers)
            if not parts and name not in self.adapters:
                self._restore(name)
                continue
            self.changed.add(name)
            factors = None
            for rows, total in self.differences.chunks(name, parts, parameter.device):
                if name in self.adapters:
                    factors = factors or self._factors(name, coefficients, total.dtype)
                    left, right = factors
                    if left.ndim == 2:
                        total.addmm_(left[rows], right)
                    else:
                        total.baddbmm_(left[rows], right[rows])
                at_rows(parameter, rows).copy_(total)

    def _factors(
        self, name: str, coefficients: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The two matrices whose product adapters add to a weight."""
        layer, module = self.adapters[name]
        weights = module.channel_weights(coefficients.to(module.a.device, dtype))  # (R,)
        a, b = module.a.to(dtype), module.b.to(dtype)
        if keeps_inputs_first(self.model, layer):
            return a.mT * weights, b.mT
        return b * weights, a

    @torch.no_grad()
    def restore(self) -> None:
        super().restore()
        for name in list(self.changed):
            self._restore(name)

    def _restore(self, name: str) -> None:
        """Make a weight that of the base again, bit for bit."""
        if name in self.changed:
            self.parameters[name].copy_(self.differences.base.kept[name])
            self.changed.discard(name)
