"""Types of settings whose values are checked or parsed by more than their Python type."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from evox_evogm.command.batch_settings import check_batch_tokens, check_max_memory
from evox_evogm.command.constraint_settings import check_constraints
from evox_evogm.command.task_settings import TaskSettings, parse_task
from evox_evogm.command.tracker_settings import check_trackers
from evox_evogm.command.trial_settings import TrialSettings, parse_trial
from evox_evogm.monitoring.budget import parse_budget

PROPOSALS = {"paper": "EvoGM", "screened": "SurrogateEvoGM"}  # formerly in `search`
EXPECTED_DATE = "a date such as 2026-11-26"


def parse_tasks(entries: Any) -> Any:
    """The settings of every task; what is no list is left to pydantic, which refuses it."""
    if not isinstance(entries, list):
        return entries
    if not entries:
        raise ValueError("tasks: expected at least one, found none")
    return [parse_task(entry) for entry in entries]


def parse_trial_or_false(trial: Any) -> TrialSettings | bool:
    """The settings of a trial, or False if there is to be none."""
    return parse_trial(trial) or False


def checked_trackers(trackers: list) -> list:
    """Trackers with options that are known."""
    check_trackers(trackers)
    return trackers


def checked_search(search: dict) -> dict:
    """Arguments of the algorithm, without the former name of another algorithm."""
    for proposal, algorithm in PROPOSALS.items():
        if search.get("proposal") == proposal:
            advice = f"write algorithm: {algorithm} beside search, in place of proposal"
            expected = "expected arguments of the algorithm"
            raise ValueError(f"search: {expected}, found proposal {proposal!r}; {advice}")
    return search


def checked_budget(budget: int | str) -> int | str:
    """A budget in evaluations as a number, and a time as it was written."""
    evaluations = parse_budget(budget).evaluations
    return budget if evaluations is None else evaluations


def checked_constraints(constraints: dict | None) -> dict | None:
    """A table of tasks and what they may lose."""
    check_constraints(constraints or {})
    return constraints


def parse_date(value: Any) -> Any:
    """A date as ISO text; what is neither a date nor a text is left to pydantic."""
    if not isinstance(value, str):  # YAML makes a date of what looks like one
        return value.isoformat() if type(value) is date else value
    try:
        return date.fromisoformat(value).isoformat()
    except ValueError:
        raise ValueError(f"chat_date: expected {EXPECTED_DATE}, found {value!r}") from None


def checked_stop(stop: str | float | None) -> str | float | None:
    """A gain that evaluations can have, or a word for one."""
    if isinstance(stop, float) and not 0 <= stop < 1e9:  # nor NaN
        raise ValueError(f"stop: expected auto, a number of at least 0 or null, found {stop}")
    return stop


def checked_minibatches(value: int | str) -> int | str:
    """A number of parts that examples can have, or a word for one."""
    if isinstance(value, int) and value < 1:
        raise ValueError(f"minibatches: expected at least 1, found {value}")
    return value


def checked_batch_tokens(value: int | str | dict | None) -> int | str | dict | None:
    """Sizes that batches can have, or a word for them."""
    check_batch_tokens(value)
    return value


def checked_memory(memory: float | str | None) -> float | str | None:
    """An amount of memory, or a word for one."""
    check_max_memory(memory)
    return memory


Tasks = Annotated[list[TaskSettings], BeforeValidator(parse_tasks)]
Trial = Annotated[bool | TrialSettings, BeforeValidator(parse_trial_or_false)]
Trackers = Annotated[list, AfterValidator(checked_trackers)]
SearchArguments = Annotated[dict, AfterValidator(checked_search)]
EvaluationsOrTime = Annotated[int | str, AfterValidator(checked_budget)]
Constraints = Annotated[dict | None, AfterValidator(checked_constraints)]
IsoDate = Annotated[str | None, BeforeValidator(parse_date)]
LeastGain = Annotated[Literal["auto"] | float | None, AfterValidator(checked_stop)]
BatchTokens = Annotated[
    int | Literal["auto"] | dict[str, int] | None, AfterValidator(checked_batch_tokens)
]
Minibatches = Annotated[int | Literal["auto"], AfterValidator(checked_minibatches)]
Memory = Annotated[int | float | Literal["auto"] | None, AfterValidator(checked_memory)]
