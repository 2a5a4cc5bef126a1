"""Where the Gaussian process of a search runs: on the search's device, in float64."""

from functools import cache

import torch

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
