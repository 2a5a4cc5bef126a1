"""The copy of the base's weights that the merged mode keeps, and the memory that it takes."""

from collections.abc import Mapping

from evox_evogm.problems.adapters.stacked_modules import StackedModule
from evox_evogm.problems.adapters.weight_merger import WeightMerger
from evox_evogm.problems.checkpoints.checkpoint_merger import CheckpointMerger
from evox_evogm.problems.checkpoints.differences import Differences
from evox_evogm.problems.inference.scored_model import ScoredModel


class WeightCopy:
    """Puts merges into the weights. The weights that change are copied on first use.

    :param language_model: whose weights change.
    :param stacked: the factors of all experts, by module.
    :param differences: of experts that are whole models; None where there are none.
    """

    def __init__(
        self,
        language_model: ScoredModel,
        stacked: Mapping[str, StackedModule],
        differences: Differences | None,
    ):
        self.language_model = language_model
        self.stacked = stacked
        self.differences = differences
        self._merger: WeightMerger | None = None

    @property
    def merger(self) -> WeightMerger:
        """Puts merges into the weights; the copy is made now, unless it is there."""
        if self._merger is None:
            model = self.language_model.model
            if self.differences is None:
                self._merger = WeightMerger(model, self.stacked)
            else:
                self._merger = CheckpointMerger(model, self.stacked, self.differences)
        return self._merger

    def drop(self) -> None:
        """Give the memory of the copy back. It is made again when it is needed."""
        self._merger = None

    @property
    def bytes(self) -> int:
        """The size of the copy, whether it is there or not."""
        model, modules = self.language_model.model, list(self.stacked)
        if self.differences is not None:
            modules = self.differences.without(model, modules)
        return WeightMerger.bytes_kept(model, modules)
