"""How far a search goes: its budget in whole steps, and what is kept for the recommended merge."""

from evox_evogm.command.minibatch_settings import count_of
from evox_evogm.command.search_algorithm import Search, cost_of_point, recommendation_cost
from evox_evogm.command.settings import RunSettings
from evox_evogm.monitoring.budget import Budget
from evox_evogm.monitoring.counted import counted
from evox_evogm.monitoring.progress import ROUNDING


class SearchLimit:
    """The limit of a search.

    :param settings: of the run.
    :param algorithm: of the search.
    """

    def __init__(self, settings: RunSettings, algorithm: Search):
        self.given = settings.limit
        self.is_open = settings.racing or self.given.evaluations is None  # in the number of steps
        self.pop_size = algorithm.pop_size
        self.cost_of_point = cost_of_point(settings)
        self.minibatches = count_of(settings)
        self.kept = recommendation_cost(algorithm, settings)

    @property
    def step_cost(self) -> float:
        """What a step costs, in full evaluations."""
        return self.pop_size * self.cost_of_point

    @property
    def budget(self) -> Budget:
        """The most that the search uses: full evaluations, the recommended merge among them."""
        if self.is_open or self.minibatches > 1 or self.given.evaluations is None:
            return self.given
        evaluations = self.given.evaluations
        return Budget(int(evaluations - (evaluations - self.kept) % self.step_cost))

    def has_room(self, done: float, seconds: float) -> bool:
        """Whether the budget has room for another step.

        :param done: full evaluations that were made in steps.
        :param seconds: of the search until now.
        """
        budget = self.budget
        if budget.evaluations is None:
            assert budget.seconds is not None
            return seconds < budget.seconds
        return done + self.step_cost + self.kept <= budget.evaluations + ROUNDING

    def words(self) -> list[str]:
        """One line that says what a budget in evaluations is cut to; none of another budget."""
        made = self.budget.evaluations
        if self.is_open or made is None:
            return []
        cost = self.cost_of_point
        steps = int((made - self.kept) / self.step_cost + ROUNDING)
        each = "evaluated together" if cost == 1 else f"with gradients, each counted as {cost:.3g}"
        if self.minibatches > 1:
            each += f", on one of {self.minibatches} minibatches"
        merges = "merges" if self.pop_size > 1 else "merge"
        parts = counted(steps, "population") + f" of {self.pop_size} {merges} {each}"
        if self.kept:
            parts += ", and the recommended one"
        return [f"budget {self.given.evaluations}: {self.budget}, {parts}"]
