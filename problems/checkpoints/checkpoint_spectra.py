"""Norms and spectra of what whole models change, one weight after another.

The spectrum of a large difference is too dear to have exactly. It is judged by the effective rank
(sum of s^2)^2 / (sum of s^4) of its singular values s: the Frobenius norm gives the numerator. The
denominator, the trace of (D D^T)^2, is estimated from products with random signs (Hutchinson 1990).
"""

import math
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.checkpoints.full_checkpoint import checkpoint_of

if TYPE_CHECKING:
    from evox_evogm.problems.adapters.odd_experts import Spectrum
    from evox_evogm.problems.adapters.read_adapter import Expert

VECTORS = 32  # of random signs, for a difference
STEPS = 8  # of the power iteration for the largest singular value


@torch.no_grad()
def spectra_of_checkpoint(expert: "Expert") -> "dict[str, Spectrum]":
    """The spectra of all weights that a whole model changes, by module; biases apart.

    :param expert: a whole model; empty where it was not compared with the base yet.
    """
    checkpoint = checkpoint_of(expert)
    spectra: dict[str, Spectrum] = {}
    if checkpoint.base is None:
        return spectra
    for name, tensor in checkpoint.tensors.items():
        base = checkpoint.base.kept[name].to("cpu", torch.float32)
        difference = tensor.to("cpu", torch.float32) - base
        module, _, last = name.rpartition(".")
        spectra[module if last == "weight" else f"{module} ({last})"] = spectrum_of(difference)
    return spectra


def spectrum_of(difference: torch.Tensor) -> "Spectrum":
    """The norm and the spectrum of a difference of weights.

    A vector has a norm only. Of more than two dimensions all but the first are one.

    :param difference: in float32; it is not changed.
    """
    from evox_evogm.problems.adapters.odd_experts import Spectrum, log_odds_of

    norm = float(torch.linalg.vector_norm(difference, dtype=torch.float64))
    if norm == 0 or not math.isfinite(norm):
        return Spectrum(norm, math.nan, -math.inf, None)
    log_size = math.log(norm) - math.log(difference.numel()) / 2
    matrix = difference.flatten(1) if difference.ndim > 1 else difference[None]
    rank = min(matrix.shape)
    if rank == 1:
        return Spectrum(norm, math.nan, log_size, None)
    matrix = (matrix if len(matrix) <= matrix.shape[1] else matrix.mT) / norm
    largest, fourth = _largest_and_fourth(matrix)
    spread = math.log(max(1.0, min(1 / fourth, rank))) / math.log(rank)
    return Spectrum(norm, largest, log_size, log_odds_of(spread))


def _largest_and_fourth(matrix: torch.Tensor) -> tuple[float, float]:
    """The largest squared singular value, and about the sum of their fourth powers.

    :param matrix: an `(m, n)` tensor of norm 1, m at most n.
    """
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (len(matrix), VECTORS), generator=generator, dtype=matrix.dtype)
    products = matrix @ (matrix.mT @ (2 * signs - 1))  # (m, VECTORS)
    fourth = float(products.square().sum()) / VECTORS
    vector = products[:, :1]
    for _ in range(STEPS):
        vector = torch.nn.functional.normalize(vector, dim=0)
        vector = matrix @ (matrix.mT @ vector)
    largest = min(1.0, float(vector.norm()))
    return largest, min(1.0, max(fourth, largest**2))
