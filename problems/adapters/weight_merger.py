"""The merged mode: one candidate after another goes into the weights of the base."""

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.adapters.layers import weight_of
from evox_evogm.problems.adapters.merging import merge_weight, merged
from evox_evogm.problems.adapters.stacked_modules import StackedModule, weights_of_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class WeightMerger:
    """Puts one merge after another into the weights of the base, for many tokens per candidate.

    A merge costs one small product per module. Every token then costs what it costs in the base.
    In half precision the merged weights are rounded to their dtype, as those of any merged
    checkpoint are; the unmerged mode (`merged`) keeps the factors apart.
    """

    def __init__(self, model: "PreTrainedModel", modules: Mapping[str, StackedModule]):
        """Keep a copy of the weights that merges change.

        A weight that several layers share, or of another dtype than its factors, does not change.
        `merged_in_place` adds the experts of such modules by hooks.

        :param model: the base model.
        :param modules: the experts, as `stack_experts` returns them.
        """
        self.model = model
        self.modules = modules
        self.weights: dict[str, torch.Tensor] = {}
        self.originals: dict[str, torch.Tensor] = {}
        self.unchanged: dict[str, StackedModule] = {}
        layers_of_weights = _count_layers_of_weights(model)
        for name, module in modules.items():
            weight = weight_of(model, name)
            if weight.dtype != module.a.dtype or layers_of_weights[weight.data_ptr()] > 1:
                self.unchanged[name] = module
                continue
            self.weights[name] = weight
            self.originals[name] = weight.detach().clone()

    @staticmethod
    def bytes_kept(model: torch.nn.Module, modules: Iterable[str]) -> int:
        """The size of the copy for these modules, at most."""
        sizes = {}
        for name in modules:
            weight = weight_of(model, name)
            sizes[id(weight)] = weight.nbytes
        return sum(sizes.values())

    @torch.no_grad()
    def load(self, coefficients: torch.Tensor) -> None:
        """Make the weights those of the merge.

        :param coefficients: an `(n g,)` tensor of effective coefficients.
        """
        changed = {name: self.modules[name] for name in self.weights}
        channels = weights_of_modules(changed, coefficients)  # per module (R,)
        for name, module in changed.items():
            original, weight = self.originals[name], self.weights[name].data
            merge_weight(self.model, name, module, channels[name], original=original, out=weight)

    @torch.no_grad()
    def restore(self) -> None:
        """Make the weights those of the base again, bit for bit."""
        for name, weight in self.weights.items():
            weight.copy_(self.originals[name])


def _count_layers_of_weights(model: torch.nn.Module) -> dict[int, int]:
    """How many layers use each parameter, by its address: an output layer may be the embedding."""
    counts: dict[int, int] = {}
    for layer in model.modules():
        for parameter in layer.parameters(recurse=False):
            address = parameter.data_ptr()
            counts[address] = counts.get(address, 0) + 1
    return counts


@contextmanager
def merged_in_place(merger: WeightMerger, pop: torch.Tensor) -> Iterator[Iterator[None]]:
    """Inside the block, an iterator that makes the model one merge after another.

    Afterwards the model is as it was, bit for bit, also after an error. Weights that cannot be
    changed in place get their experts as in `merged`.

    :param pop: a `(P, n g)` tensor of effective coefficients.
    :return: an iterator of P steps, each of which makes the model the next candidate.
    """

    def load_each() -> Generator[None, None, None]:
        for coefficients in pop:
            merger.load(coefficients)
            with merged(merger.model, merger.unchanged, coefficients):
                yield

    candidates = load_each()
    try:
        yield candidates
    finally:
        candidates.close()
        merger.restore()
