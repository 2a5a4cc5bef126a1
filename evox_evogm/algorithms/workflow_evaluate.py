"""How an algorithm evaluates outside a step: by the workflow that steps it."""

from collections.abc import Callable

import torch


class WorkflowEvaluate:
    """How a workflow evaluates: shared by an algorithm and the copy that the workflow steps.

    EvoX gives `evaluate` to its copy alone, and users keep the original. It is no part of a state.
    """

    def __init__(self):
        self.evaluate: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __reduce__(self):
        return WorkflowEvaluate, ()  # a copy is set by its own workflow
