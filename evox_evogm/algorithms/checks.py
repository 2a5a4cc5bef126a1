"""Checks of the arguments that algorithms share. What is wrong ends in one sentence."""

from collections.abc import Sequence

import torch


def check_box(pop_size: int, lb: torch.Tensor, ub: torch.Tensor, least: int = 1) -> None:
    """Refuse what is not a population size and a box.

    :param pop_size: P, evaluations per step.
    :param lb: the lowest point.
    :param ub: the highest point.
    :param least: the smallest population that the algorithm can work with.
    :raises ValueError: if `pop_size` is under `least`, or `lb` and `ub` are not two finite vectors
        of float32 or float64 with lb < ub.
    """
    check_whole_numbers(least, pop_size=pop_size)
    for name, value in {"lb": lb, "ub": ub}.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{name}: expected a tensor, found {value!r}")
    vectors = lb.ndim == 1 and len(lb) > 0 and lb.dtype.is_floating_point
    if not vectors or lb.shape != ub.shape or lb.dtype != ub.dtype:
        raise ValueError(
            "lb and ub: expected two floating-point vectors of one length and dtype, "
            f"found {tuple(lb.shape)} {lb.dtype} and {tuple(ub.shape)} {ub.dtype}"
        )
    check_precision("lb and ub", lb)
    if not bool((lb < ub).all()):
        raise ValueError(
            "lb and ub: expected lb < ub in every coordinate, "
            f"found lb {lb.tolist()}, ub {ub.tolist()}"
        )
    if not bool((ub - lb).isfinite().all()):
        raise ValueError(
            "lb and ub: expected finite bounds with a finite distance, "
            f"found lb {lb.tolist()}, ub {ub.tolist()}"
        )


def check_precision(name: str, vector: torch.Tensor) -> None:
    """Refuse a vector in half precision, in which near points and scores become equal.

    :param name: of the vector.
    :param vector: of a floating-point type. A search computes in this type.
    :raises ValueError: if it is neither float32 nor float64.
    """
    if vector.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name}: expected float32 or float64, found {vector.dtype}, in which near points are "
            "equal; give dtype=torch.float32"
        )


def check_whole_numbers(least: int, **values: int) -> None:
    """Refuse what is not a whole number of at least `least`.

    :param values: by the names that the user knows.
    :raises ValueError: with the name and what was found.
    """
    for name, value in values.items():
        if not isinstance(value, int) or value < least:
            raise ValueError(
                f"{name}: expected a whole number of at least {least}, found {value!r}"
            )


def check_not_negative(**values: float) -> None:
    """Refuse what is not a finite number of at least 0.

    :param values: by the names that the user knows.
    :raises ValueError: with the name and what was found.
    """
    for name, value in values.items():
        if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise ValueError(f"{name}: expected a number of at least 0, found {value!r}")


def check_training(
    *,
    epochs: int,
    lr: float,
    winner_ratio: float,
    cycle_weight: float,
    opt_weight: float,
    hidden_dims: Sequence[int],
) -> None:
    """Refuse settings that no generators can be trained with; they are those of `EvoGM`.

    :raises ValueError: if one is out of range.
    """
    if not isinstance(hidden_dims, Sequence):
        raise ValueError(f"hidden_dims: expected a sequence of widths, found {hidden_dims!r}")
    widths = {f"hidden_dims[{index}]": width for index, width in enumerate(hidden_dims)}
    check_whole_numbers(1, epochs=epochs, **widths)
    check_not_negative(lr=lr, cycle_weight=cycle_weight, opt_weight=opt_weight)
    if not isinstance(winner_ratio, (int, float)) or not 0 < winner_ratio <= 1:
        raise ValueError(f"winner_ratio: expected a number in (0, 1], found {winner_ratio!r}")


def check_fitness(fitness: torch.Tensor, expected: Sequence[int]) -> None:
    """Refuse fitness of another shape than an algorithm can use.

    :param fitness: what a problem gave.
    :param expected: the shape, `(P,)` or P rows with further columns.
    :raises ValueError: naming both shapes.
    """
    if fitness.shape == tuple(expected):
        return
    what = "a number per point (or outcomes= for further columns)"
    if len(expected) > 1:
        what = "a row per point"
    raise ValueError(
        f"evaluate: expected fitness {tuple(expected)}, {what}, found {tuple(fitness.shape)}"
    )


def check_outcomes(
    weights: torch.Tensor, by_sign: torch.Tensor, groups: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Refuse what does not say what columns of fitness mean.

    :param weights: an `(S,)` tensor, see `surrogate.Outcomes`.
    :param by_sign: an `(S,)` tensor of bool, likewise.
    :param groups: an `(S,)` tensor of int64, likewise.
    :return: the three tensors; without groups all outcomes are one group.
    :raises ValueError: if they are not tensors of one length and these types, or a weight is
        negative.
    """
    if not (isinstance(weights, torch.Tensor) and isinstance(by_sign, torch.Tensor)):
        raise ValueError(
            "outcomes: expected two tensors, weights and by_sign, "
            f"found {type(weights)} and {type(by_sign)}"
        )
    if weights.ndim != 1 or weights.shape != by_sign.shape or by_sign.dtype != torch.bool:
        raise ValueError(
            "outcomes: expected weights (S,) and by_sign (S,) of bool, "
            f"found {tuple(weights.shape)} {weights.dtype} and "
            f"{tuple(by_sign.shape)} {by_sign.dtype}"
        )
    if not bool((weights >= 0).all()):
        raise ValueError(f"outcomes: expected weights of at least 0, found {float(weights.min())}")
    if groups is None:
        groups = torch.zeros(len(weights), dtype=torch.int64)
    if groups.shape != weights.shape or groups.dtype != torch.int64:
        raise ValueError(
            f"outcomes: expected groups ({len(weights)},) of int64, "
            f"found {tuple(groups.shape)} {groups.dtype}"
        )
    return weights, by_sign, groups


def check_initial_points(points: torch.Tensor, lb: torch.Tensor, ub: torch.Tensor) -> None:
    """Refuse initial points of another width, or outside the box.

    :param points: a `(K, n)` tensor in units of `lb` and `ub`.
    :param lb: an `(n,)` tensor, the lowest point.
    :param ub: an `(n,)` tensor, the highest point.
    :raises ValueError: naming what was found.
    """
    if not isinstance(points, torch.Tensor) or points.ndim != 2 or points.shape[1] != len(lb):
        found = tuple(points.shape) if isinstance(points, torch.Tensor) else repr(points)
        raise ValueError(f"initial_points: expected a tensor (K, {len(lb)}), found {found}")
    inside = (lb <= points.to(lb)) & (points.to(lb) <= ub)
    if not bool(inside.all()):
        row = int((~inside.all(1)).nonzero()[0])
        raise ValueError(
            f"initial_points: expected points inside the box, found {points[row].tolist()}"
        )
