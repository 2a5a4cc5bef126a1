"""Write a merge with fewer channels: the best approximation of each module of a given rank.

A merge of n experts has B `(D_out, R)` and A `(R, D_in)`, R the sum of the experts' ranks. With
B = Q_B R_B and A^T = Q_A R_A its singular values are those of the small core R_B R_A^T, and the
best approximation of rank r keeps the r largest (Eckart and Young 1936). No `(D_out, D_in)` matrix
is made. The E matrices of a parameter have one rank in common.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from evox_evogm.problems.adapters.factor_norms import RelativeError, relative_error
from evox_evogm.problems.adapters.read_adapter import Factors

# Singular values below this part of the largest one are rounding, and no direction of the merge.
NEGLIGIBLE = 1e-7


@dataclass(frozen=True)
class Decomposition:
    """The singular value decomposition of one module's merge.

    :param left: a `(..., D_out, k)` tensor of orthonormal columns, in float64 on the CPU.
    :param values: `(..., k)` singular values in descending order.
    :param right: a `(..., k, D_in)` tensor of orthonormal rows.
    :param factors: what was decomposed.
    """

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor
    factors: Factors

    @property
    def energies(self) -> torch.Tensor:
        """`(k,)` squares of the singular values, summed over the matrices of a parameter."""
        squares = self.values.square()
        return squares.flatten(0, -2).sum(0) if squares.ndim > 1 else squares

    @property
    def rank(self) -> int:
        """How many singular values are more than rounding."""
        energies = self.energies
        return int((energies > energies[0] * NEGLIGIBLE**2).sum())

    def truncate(self, rank: int) -> Factors:
        """Factors of the best approximation of a rank, in float32, A and B of equal size.

        :param rank: at most k.
        """
        roots = self.values[..., :rank].sqrt()
        b = self.left[..., :rank] * roots[..., None, :]
        a = roots[..., :, None] * self.right[..., :rank, :]
        return replace(self.factors, a=a.float(), b=b.float(), scale=1.0)


@dataclass(frozen=True)
class Compressed:
    """A merge with fewer channels.

    :param factors: by module, in float32 on the CPU, with scale 1.
    :param rank: the largest rank of a module.
    :param error: relative to the whole merge.
    """

    factors: dict[str, Factors]
    rank: int
    error: RelativeError


def decompose(factors: Factors) -> Decomposition:
    """The singular value decomposition of s B A, by the core of its factors."""
    q_b, r_b = torch.linalg.qr(factors.scale * factors.b.to("cpu", torch.float64))
    q_a, r_a = torch.linalg.qr(factors.a.mT.to("cpu", torch.float64))
    u, values, vt = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
    return Decomposition(q_b @ u, values, vt @ q_a.mT, factors)


def compress(
    factors: Mapping[str, Factors], *, rank: int | None = None, tolerance: float | None = None
) -> Compressed:
    """The merge with at most `rank` channels a module, or with as few as an error allows.

    :param factors: the whole merge by module, not empty.
    :param rank: the most channels of a module.
    :param tolerance: the relative error that is allowed over all modules together. The channels
        with the largest singular values are kept, so ranks differ between modules.
    :raises ValueError: unless exactly one of the two is given, in range.
    """
    check_rank_or_tolerance(rank, tolerance)
    parts = {name: decompose(module) for name, module in factors.items()}
    if rank is not None:
        ranks = {name: min(rank, part.rank) for name, part in parts.items()}
    else:
        assert tolerance is not None
        ranks = _ranks_within(parts, tolerance)
    kept = {}
    for name, part in parts.items():
        if ranks[name]:
            kept[name] = part.truncate(ranks[name])
    return Compressed(kept, max(ranks.values()), relative_error(kept, factors))


def check_rank_or_tolerance(rank: int | None, tolerance: float | None) -> None:
    """Refuse what says no rank.

    :raises ValueError: unless exactly one of the two is given, in range.
    """
    if (rank is None) == (tolerance is None):
        found = "none" if rank is None else "both"
        raise ValueError(f"rank: expected either a rank or a tolerated error, found {found}")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ValueError(f"rank: expected a whole number of at least 1, found {rank!r}")
    if tolerance is not None and not 0 < tolerance < 1:  # nor NaN
        raise ValueError(
            f"tolerance: expected a relative error between 0 and 1, found {tolerance!r}"
        )


def _ranks_within(parts: Mapping[str, Decomposition], tolerance: float) -> dict[str, int]:
    """The rank of each module with which all together stay within a relative error.

    :param tolerance: of the Frobenius norm over all modules.
    """
    channels = []  # energy and module of each channel
    for name, part in parts.items():
        for energy in part.energies.tolist():
            channels.append((energy, name))
    channels.sort()
    allowed = tolerance**2 * sum(energy for energy, _ in channels)
    ranks = {name: len(part.energies) for name, part in parts.items()}
    dropped = 0.0
    for energy, name in channels:  # the smallest first
        dropped += energy
        if dropped > allowed:
            break
        ranks[name] -= 1
    return ranks
