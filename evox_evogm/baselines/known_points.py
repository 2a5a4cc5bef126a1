"""The points that are known before any search, and how every baseline comes to start from them.

Coefficients weigh the experts' deltas: the base is the zero vector, expert k is the one-hot k, the average is 1/n everywhere.
"""

import torch
from evox.core import Algorithm


def check_box(pop_size: int, lb: torch.Tensor, ub: torch.Tensor, least: int = 1) -> None:
    """Refuse what is not a population size and a box.

    :param least: the smallest population that the algorithm can work with.
    :raises ValueError: if `pop_size` is under `least`, or `lb` and `ub` are not two vectors with lb < ub.
    """
    if not isinstance(pop_size, int) or pop_size < least:
        raise ValueError(
            f"pop_size: expected a whole number of at least {least}, found {pop_size!r}"
        )
    for name, value in {"lb": lb, "ub": ub}.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{name}: expected a tensor, found {value!r}")
    if (
        lb.ndim != 1
        or lb.shape != ub.shape
        or lb.dtype != ub.dtype
        or not lb.dtype.is_floating_point
        or len(lb) < 1
    ):
        raise ValueError(
            "lb and ub: expected two floating-point vectors of one length and dtype, "
            f"found {tuple(lb.shape)} {lb.dtype} and {tuple(ub.shape)} {ub.dtype}"
        )
    if not bool((lb < ub).all()):
        raise ValueError(
            f"lb and ub: expected lb < ub in every coordinate, found lb {lb.tolist()}, ub {ub.tolist()}"
        )


def known_points(
    n: int, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> torch.Tensor:
    """Base, experts and average.

    :param n: the number of experts, at least 1.
    :param dtype: defaults to torch's default floating-point type.
    :param device: defaults to torch's default device.
    :return: an `(n + 2, n)` tensor: zeros, the one-hots, 1/n.
    :raises ValueError: if `n` is not a positive whole number.
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n: expected a whole number of at least 1, found {n!r}")
    one_hots = torch.eye(n, dtype=dtype, device=device)
    return torch.cat([torch.zeros_like(one_hots[:1]), one_hots, one_hots.mean(0, keepdim=True)])


def uniform(rows: int, lb: torch.Tensor, ub: torch.Tensor) -> torch.Tensor:
    """A `(rows, n)` tensor of points drawn uniformly from the box."""
    return lb + (ub - lb) * torch.rand(rows, len(lb), dtype=lb.dtype, device=lb.device)


def first_population(
    pop_size: int, lb: torch.Tensor, ub: torch.Tensor, *, device: torch.device | None = None
) -> torch.Tensor:
    """The published EvoGM's first points and the base, the start that searches share where their definition allows it.

    :param pop_size: P. Over n: the one-hots, the average, the base, the rest uniform. Of at most n: the average, the first
        one-hots.
    :param lb: an `(n,)` tensor, the least coefficients of the uniform points. The known points are the same in every box.
    :param ub: an `(n,)` tensor, the largest ones.
    :param device: defaults to that of `lb`.
    :return: a `(P, n)` tensor of the dtype of `lb`.
    :raises ValueError: if `pop_size` is under 1, or `lb` and `ub` are not two vectors with lb < ub.
    """
    check_box(pop_size, lb, ub)
    lb, ub = lb.to(device), ub.to(device)
    base, *one_hots, average = known_points(len(lb), lb.dtype, lb.device).split(1)
    known = [*one_hots, average, base] if pop_size > len(lb) else [average, *one_hots]
    return torch.cat([*known, uniform(max(0, pop_size - len(lb) - 2), lb, ub)])[:pop_size]


def start_from(algorithm: Algorithm, points: torch.Tensor) -> Algorithm:
    """Replace the first points of an algorithm that draws its population when it is made: EvoX's PSO, CSO, DE and their kin.

    Tensors of its state that hold the same population (personal bests), or its first row (a global best), follow.

    :param algorithm: before its first step.
    :param points: a `(K, n)` tensor, 1 <= K <= P; rows after the first K stay as they were drawn.
    :return: the same algorithm.
    :raises ValueError: if the algorithm has no population of that width, or a smaller one.
    """
    pop = getattr(algorithm, "pop", None)
    if not isinstance(pop, torch.Tensor) or pop.ndim != 2:
        raise ValueError(
            f"algorithm: expected a population `pop` (P, n), found none in {type(algorithm).__name__}"
        )
    if not isinstance(points, torch.Tensor) or points.ndim != 2 or points.shape[1] != pop.shape[1]:
        found = tuple(points.shape) if isinstance(points, torch.Tensor) else repr(points)
        raise ValueError(f"points: expected a tensor (K, {pop.shape[1]}), found {found}")
    if not 1 <= len(points) <= len(pop):
        raise ValueError(f"points: expected 1 to {len(pop)} rows, found {len(points)}")
    drawn = pop.clone()
    started = torch.cat([points.to(pop), drawn[len(points) :]])  # (P, n)
    for name, value in list(algorithm.named_buffers(recurse=False)):
        # Each gets a copy of its own: CSO writes into its population.
        if torch.equal(value, drawn):
            setattr(algorithm, name, started.clone())
        elif torch.equal(value, drawn[0]):
            setattr(algorithm, name, started[0].clone())
    return algorithm
