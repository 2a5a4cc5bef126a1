"""How far logits are apart, and how far rounding alone moves them."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

LARGEST_LOGIT = 1e4  # what is beyond is a token that the model excludes
# How far two ways to compute the same may be apart, in measured roundings (`rounded_differently`).
# SmolLM2-135M: 1.3 at most in float32, 0.8 in bfloat16. A small random model: up to 5, by row. Real
# faults are thousands in float32, and some dozens in half precision.
MOST_ROUNDINGS = 50.0
MOST_ROUNDINGS_IN_HALF = 10.0
LEAST_ROUNDING = 1e-12  # of logits that no rounding moves


class Tolerance:
    """How far two ways to compute the same logits may be apart.

    :param dtype: of the model.
    """

    def __init__(self, dtype: torch.dtype):
        self.most_roundings = MOST_ROUNDINGS_IN_HALF if dtype.itemsize < 4 else MOST_ROUNDINGS
        self.rounding = 0.0  # by how much rounding moves logits, as measured so far

    def allows(self, apart: float) -> bool:
        """Whether logits that are so far apart differ by rounding only."""
        return apart <= self.most_roundings * self.rounding

    def agree(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        """Whether two ways to compute the same logits `(Q, V)` differ by rounding only."""
        return self.allows(difference(found, expected))

    def in_roundings(self, found: torch.Tensor, expected: torch.Tensor) -> float:
        """How far logits `(Q, V)` are apart, in roundings."""
        return difference(found, expected) / max(self.rounding, LEAST_ROUNDING)


@contextmanager
def rounded_differently(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block every module's output moves by up to half a unit in its last place.

    That is what another order of the same sums does.
    """
    generator = torch.Generator().manual_seed(0)

    def move(module, inputs, output):
        if not isinstance(output, torch.Tensor) or not output.is_floating_point():
            return None
        values = output.float()
        size = values.square().mean(-1, keepdim=True).sqrt() * torch.finfo(output.dtype).eps / 2
        noise = 2 * torch.rand(values.shape, generator=generator) - 1
        return (values + size * noise.to(values.device)).to(output.dtype)

    handles = []
    for module in model.modules():
        if not list(module.children()):
            handles.append(module.register_forward_hook(move))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def usable(logits: torch.Tensor) -> torch.Tensor:
    """Which logits can be compared: those of tokens that the model does not exclude."""
    return logits.isfinite() & (logits.abs() < LARGEST_LOGIT)


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far logits `(Q, V)` are apart: the root mean square of the worst position."""
    where = usable(expected)
    apart = torch.where(where, found.float() - expected, 0.0).nan_to_num(math.inf)
    squares = apart.square().sum(-1) / where.sum(-1).clamp_min(1)
    return float(squares.max().sqrt())


def largest_difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """The largest `difference` of pairs of logits."""
    return max(difference(one, other) for one, other in zip(found, expected, strict=True))
