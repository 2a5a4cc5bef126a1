"""Frobenius norms of products B A, and of their differences, without the products.

Of B `(D_out, r)` = Q_B R_B and A^T `(D_in, r)` = Q_A R_A the norm of B A is that of R_B R_A^T. All
is computed in float64 on the CPU, so that differences in the last digits of float32 are seen.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

from evox_evogm.problems.adapters.read_adapter import Factors


class RelativeError(NamedTuple):
    """How far factors are from others, relative to these (Frobenius norms).

    :param overall: over all modules together, as if their weights were one vector.
    :param by_module: of each module by its name.
    """

    overall: float
    by_module: dict[str, float]


def triangles(b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """R_B and R_A, whose product R_B R_A^T has the norm and the singular values of B A.

    :param b: B, a `(..., D_out, r)` tensor.
    :param a: A, a `(..., r, D_in)` tensor.
    :return: two `(..., min(D, r), r)` tensors in float64 on the CPU.
    """
    right = torch.linalg.qr(a.mT.to("cpu", torch.float64), mode="r").R
    left = torch.linalg.qr(b.to("cpu", torch.float64), mode="r").R
    return left, right


def product_norm(b: torch.Tensor, a: torch.Tensor) -> float:
    """The Frobenius norm of B A; of the products of all matrices together, if there are several."""
    left, right = triangles(b, a)
    return float((left @ right.mT).norm())


def relative_error(found: Mapping[str, Factors], expected: Mapping[str, Factors]) -> RelativeError:
    """How far merged factors are from others of the same modules.

    :param found: by module; one that is missing counts as 0.
    :param expected: by module.
    """
    squares, total = 0.0, 0.0
    by_module = {}
    for name, wanted in expected.items():
        norm = product_norm(wanted.b, wanted.a) * abs(wanted.scale)
        apart = difference_norm(found.get(name), wanted)
        by_module[name] = apart / norm if norm else apart
        squares += apart**2
        total += norm**2
    return RelativeError(math.sqrt(squares / total) if total else math.sqrt(squares), by_module)


def difference_norm(found: Factors | None, expected: Factors) -> float:
    """The Frobenius norm of s B A - s' B' A'."""
    wanted_b = expected.scale * expected.b.double()
    if found is None:
        return product_norm(wanted_b, expected.a)
    b = torch.cat([found.scale * found.b.double(), -wanted_b], dim=-1)
    a = torch.cat([found.a.double(), expected.a.double()], dim=-2)
    return product_norm(b, a)
