"""A transformers model that scores merges: batches whose rows may belong to several candidates."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from typing_extensions import Self

from evox_evogm.problems.inference.batch_sizes import BatchSizes
from evox_evogm.problems.inference.capabilities import Capabilities
from evox_evogm.problems.inference.forward import Forward, Select

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ScoredModel:
    """A model with its forward passes.

    :param model: of transformers, in evaluation mode.
    :param forward: makes its passes.
    :param batch_sizes: how large batches are.
    :param max_memory: bytes that a forward pass may take beyond the model, as estimated. A single
        row may take more.
    :param capabilities: what the base gives rightly, as the probe finds it out.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        forward: Forward,
        *,
        batch_sizes: BatchSizes,
        max_memory: int,
        capabilities: Capabilities,
    ):
        self.model = model
        self.forward = forward
        self.batch_sizes = batch_sizes
        self.max_memory = max_memory
        self.coefficients_of_rows: Callable[[], torch.Tensor] | None = None
        self.rely_on(capabilities)

    @property
    def batch_tokens(self) -> int:
        """The most tokens of a pass over prompts. The rows that decode together change with it."""
        return self.batch_sizes.tokens

    @batch_tokens.setter
    def batch_tokens(self, tokens: int) -> None:
        self.batch_sizes = self.batch_sizes.with_tokens(tokens)

    def rely_on(self, capabilities: Capabilities) -> None:
        """Make batches, caches and passes as the base gives them rightly."""
        self.capabilities = capabilities
        self.forward.give_positions = capabilities.positions
        self.forward.fuse_norms = capabilities.fused_norms and bool(self.forward.find_norms())

    @contextmanager
    def candidates(
        self,
        select: Select,
        shared_layers: int = 0,
        coefficients_of_rows: Callable[[], torch.Tensor] | None = None,
    ) -> Iterator[None]:
        """Inside the block the rows of a batch may belong to different candidates.

        :param select: called before each forward pass with the candidate of each row of the batch,
            and with the rows that the output layer will see.
        :param shared_layers: how many of the first decoder layers are the same for all candidates.
        :param coefficients_of_rows: gives the `(N, n g)` coefficients that the rows of the last
            batch own, where derivatives are wanted.
        """
        outside = self.forward
        if not self.capabilities.share_layers:
            shared_layers = 0
        self.forward = outside.for_candidates(select, shared_layers)
        self.coefficients_of_rows = coefficients_of_rows
        try:
            yield
        finally:
            self.forward = outside
            self.coefficients_of_rows = None

    def with_forward(self, forward: Forward) -> Self:
        """The same with other forward passes. Both share what they have made so far."""
        other = copy.copy(self)
        other.forward = forward
        return other

    @property
    def device(self) -> torch.device:
        return self.forward.device

    def derivatives_of(self, values: torch.Tensor) -> torch.Tensor:
        """The derivatives `(N, n g)` of a number `(N,)` for each row, on the CPU."""
        assert self.coefficients_of_rows is not None, "no candidates to differentiate by"
        coefficients = self.coefficients_of_rows()  # (N, n g)
        if not values.requires_grad:
            raise ValueError(
                "gradients: expected a base through which gradients pass, found that its logits do "
                "not depend on the coefficients; search without gradients"
            )
        (found,) = torch.autograd.grad(values.sum(), coefficients)
        return found.cpu()
