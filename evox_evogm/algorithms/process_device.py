"""Where the Gaussian process of a search runs, and its data there: in float64."""

from functools import cache

import torch

from evox_evogm.algorithms.surrogate import Outcomes

CPU = torch.device("cpu")


@cache
def process_device(device: torch.device) -> torch.device:
    """The device itself if it computes in float64, else the CPU: float32 is not exact enough.

    :param device: of the search.
    """
    if device.type == "cpu":
        return CPU
    try:
        matrix = torch.eye(2, dtype=torch.float64, device=device)
        works = float(torch.linalg.cholesky(matrix).erf().sum()) > 0
    except torch.OutOfMemoryError:  # says nothing about float64
        raise
    except (TypeError, RuntimeError):  # such as of Apple's GPUs
        works = False
    return device if works else CPU


def outcomes_on(outcomes: Outcomes, device: torch.device) -> Outcomes:
    """The tensors of some outcomes on a device, the groups spelt out."""
    weights, by_sign, groups = outcomes
    if groups is None:
        groups = torch.zeros_like(by_sign, dtype=torch.int64)
    return Outcomes(weights.to(device), by_sign.to(device), groups.to(device))


def in_float64(
    points: torch.Tensor, fitness: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """A history in float64 on a device, with inf as the fitness of what failed."""
    failed = fitness == torch.finfo(fitness.dtype).max  # `archive.failed_as_worst`
    fitness = torch.where(failed, torch.inf, fitness)
    return points.detach().to(device).double(), fitness.detach().to(device).double()
