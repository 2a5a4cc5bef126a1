"""The points that are known before any search, and how every baseline comes to start from them.

Coefficients weigh the experts' deltas: the base is the zero vector, expert k is the one-hot k, and
the average of all experts is 1/n everywhere.
"""

import torch
from evox.core import Algorithm

from evox_evogm.algorithms.checks import check_box, check_whole_numbers


def known_points(
    n: int, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> torch.Tensor:
    """Base, experts and average.

    :param n: the number of experts, at least 1.
    :param dtype: Defaults to torch's default floating-point type.
    :param device: Defaults to torch's default device.
    :return: an `(n + 2, n)` tensor: zeros, the one-hots, 1/n.
    :raises ValueError: if `n` is not a positive whole number.
    """
    check_whole_numbers(1, n=n)
    experts = torch.eye(n, dtype=dtype, device=device)
    base = torch.zeros_like(experts[:1])
    average = experts.mean(0, keepdim=True)
    return torch.cat([base, experts, average])


def uniform(rows: int, lb: torch.Tensor, ub: torch.Tensor) -> torch.Tensor:
    """A `(rows, n)` tensor of points drawn uniformly from the box."""
    return lb + (ub - lb) * torch.rand(rows, len(lb), dtype=lb.dtype, device=lb.device)


def initial_population(
    pop_size: int, lb: torch.Tensor, ub: torch.Tensor, *, device: torch.device | None = None
) -> torch.Tensor:
    """The published EvoGM's initial population and the base.

    Searches share this start where their definition allows it. With more than n points it is the
    one-hots, the average, the base, and uniform points. With at most n points it is the average and
    the first one-hots.

    :param pop_size: P.
    :param lb: an `(n,)` tensor, the least coefficients of the uniform points. The known points are
        the same in every box.
    :param ub: an `(n,)` tensor, the largest coefficients of the uniform points.
    :param device: Defaults to that of `lb`.
    :return: a `(P, n)` tensor of the dtype of `lb`.
    :raises ValueError: if `pop_size` is under 1, or `lb` and `ub` are not two vectors with lb < ub.
    """
    check_box(pop_size, lb, ub)
    lb = lb.to(device)
    ub = ub.to(device)
    n = len(lb)
    known = known_points(n, lb.dtype, lb.device)
    base, one_hots, average = known.split([1, n, 1])
    parts = [average, one_hots]
    if pop_size > n:
        parts = [one_hots, average, base]
    parts.append(uniform(max(0, pop_size - n - 2), lb, ub))
    return torch.cat(parts)[:pop_size]


def check_start(start: str) -> None:
    """Refuse what is no way to start a baseline.

    :raises ValueError: naming the two that there are.
    """
    if start not in ("own", "known"):
        raise ValueError(f"start: expected own or known, found {start!r}")


def start_from(algorithm: Algorithm, points: torch.Tensor) -> Algorithm:
    """Replace the initial population of an algorithm: EvoX's PSO, CSO, DE and their kin.

    The algorithm must draw this population when it is made. Tensors of its state that hold the same
    population (personal bests), or its first row (a global best), follow.

    :param algorithm: before its first step.
    :param points: a `(K, n)` tensor, 1 <= K <= P. Rows after the first K stay as they were drawn.
    :return: the same algorithm.
    :raises ValueError: if the algorithm has no population of that width, or a smaller one.
    """
    pop = _population_of(algorithm)
    _check_points(points, pop)
    drawn = pop.clone()
    started = torch.cat([points.to(pop), drawn[len(points) :]])  # (P, n)
    for name, value in list(algorithm.named_buffers(recurse=False)):
        # Each gets a copy of its own: CSO writes into its population.
        if torch.equal(value, drawn):
            setattr(algorithm, name, started.clone())
        elif torch.equal(value, drawn[0]):
            setattr(algorithm, name, started[0].clone())
    return algorithm


def _population_of(algorithm: Algorithm) -> torch.Tensor:
    """The population `(P, n)` of an algorithm.

    :raises ValueError: if it has none.
    """
    pop = getattr(algorithm, "pop", None)
    if not isinstance(pop, torch.Tensor) or pop.ndim != 2:
        kind = type(algorithm).__name__
        raise ValueError(f"algorithm: expected a population `pop` (P, n), found none in {kind}")
    return pop


def _check_points(points: object, pop: torch.Tensor) -> None:
    """Refuse what cannot be the first rows of a population `(P, n)`.

    :raises ValueError: naming what was found.
    """
    n = pop.shape[1]
    if not isinstance(points, torch.Tensor):
        raise ValueError(f"points: expected a tensor (K, {n}), found {points!r}")
    if points.ndim != 2 or points.shape[1] != n:
        raise ValueError(f"points: expected a tensor (K, {n}), found {tuple(points.shape)}")
    if not 1 <= len(points) <= len(pop):
        raise ValueError(f"points: expected 1 to {len(pop)} rows, found {len(points)}")
