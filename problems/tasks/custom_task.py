"""A task that makes its own requests of a model, and scores the answers itself."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evox_evogm.problems.tasks.task import Task

if TYPE_CHECKING:
    import torch

    from evox_evogm.problems.inference.prompts import Request, Tokens
    from evox_evogm.problems.tasks.requests import Case


class CustomTask(Task):
    """The base of tasks that `metrics.METRICS` knows nothing of.

    `metrics.py`, `requests.py` and `margins.py` call these methods where they would otherwise look
    at the settings of a task. A subclass is a frozen dataclass as `Task` is, so that its examples
    can be replaced by some of them. The model that it gets is the one that it was made for: a
    `LanguageModel`, or with images an `ImageModel`.
    """

    @property
    def counts_by_sign(self) -> bool:
        """Whether a margin counts by being above 0, see `margins.METRICS_BY_SIGN`."""
        return False

    @property
    def scores_by_example(self) -> bool:
        """Whether the score of a task is the mean over scores of examples.

        Otherwise every example has the score of all examples together.
        """
        return True

    @property
    def may_be_negative(self) -> bool:
        """Whether scores are below 0 by the metric."""
        return False

    @property
    def no_derivatives(self) -> str | None:
        """Why there are no derivatives by the coefficients, or None if there are."""
        return None

    @property
    def trainable(self) -> bool:
        """Whether `gold_requests` gives right answers that are worth learning."""
        return False

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages whose versions the scores depend on."""
        return ()

    def score(
        self,
        model: Any,
        cases: "Sequence[Case] | None" = None,
        *,
        margins: "torch.Tensor | None" = None,
        derivatives: "torch.Tensor | None" = None,
    ) -> "torch.Tensor":
        """Score S cases, which may be those of several tasks of the same form.

        :param cases: pairs of candidate and example; by default all examples, for the first one.
        :param margins: an `(S,)` tensor on the CPU to write to.
        :param derivatives: an `(S, n g)` tensor on the CPU to write to, of the margins.
        :return: an `(S,)` float32 tensor on the CPU, higher is better.
        """
        raise NotImplementedError

    def form(self, model: Any) -> tuple:
        """What tasks have to agree in to share batches."""
        return (self.name,)

    def tokenize(self, model: Any) -> int:
        """Make all tokens that scoring needs, and check that the base can take them.

        :return: the number of tokens of all prompts.
        :raises ValueError: naming task and example, if the base cannot take them.
        """
        raise NotImplementedError

    def prompts(self, model: Any, cases: "Sequence[Case]") -> "list[Tokens]":
        """The prompt tokens of each case."""
        raise NotImplementedError

    def gold_requests(self, model: Any) -> "list[Request]":
        """The questions with their right answers and the end of the text, in tokens.

        :raises ValueError: if the task has no right answers.
        """
        raise ValueError(
            f"task {self.name!r}: expected a task with right answers to read, found one that "
            "scores answers by a function"
        )
