"""The weights of one merge with whole models, exact, for what is written and compared."""

from collections.abc import Sequence

import torch

from evox_evogm.problems.checkpoints.differences import Differences


class MergedCheckpoints:
    """What whole models make of the base's weights in one merge, without its adapters.

    :param differences: of all whole models.
    :param coefficients: an `(n g,)` tensor of effective coefficients.
    """

    def __init__(self, differences: Differences, coefficients: torch.Tensor):
        self.differences = differences
        self.coefficients = coefficients.cpu()
        self.names: list[str] = []  # of the weights that change, as the base has them
        for name in differences.experts:
            if differences.parts(name, self.coefficients):
                self.names.append(name)
        parameters = differences.base.parameters
        self._names_by_id = {id(parameters[name]): name for name in self.names}

    def weight(self, parameter: torch.Tensor) -> torch.Tensor | None:
        """A weight of the merge in float32 on the CPU, or None if whole models do not change it.

        :param parameter: the weight of the base.
        """
        name = self._names_by_id.get(id(parameter))
        return None if name is None else self.differences.weight(name, self.coefficients)

    def original(self, name: str) -> torch.Tensor:
        """A weight of the base that changes, in float32 on the CPU."""
        return self.differences.base.kept[name].to("cpu", torch.float32)

    def besides(self, modules: Sequence[str]) -> list[str]:
        """The names of the weights that change, without those of some modules."""
        return [name for name in self.names if name.removesuffix(".weight") not in modules]
