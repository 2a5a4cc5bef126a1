"""Settings that a run finds out or chooses at its beginning, and keeps: a later process reads them.

Beside `dtype`, `mode`, the sizes of batches and the number of minibatches these are how many
numbers a function returns (`dev`, `test` and `margins` of a task with `fitness`), and the least
scores of constraints.
"""

from typing import TYPE_CHECKING, Any

from evox_evogm.command.constraint_settings import AGAINST, FOUND, resolved

if TYPE_CHECKING:
    from evox_evogm.command.settings import RunSettings
    from evox_evogm.command.tasks import RunTasks
    from evox_evogm.problems.scalarization import Objective

FOUND_OUT = (
    "dtype",
    "mode",
    "batch_tokens",
    "max_memory",
    "minibatches",
    "tasks",
    "constraints",
    "chat_date",
)
OF_FUNCTIONS = ("dev", "test", "margins")


def chosen(settings: "RunSettings", tasks: "RunTasks", objective: "Objective") -> dict[str, Any]:
    """What was found out, as settings.

    :param tasks: of the run, with as many examples as their functions return numbers.
    :param objective: with the least scores of its constraints.
    """
    from evox_evogm.problems.functions.fitness_task import FitnessTask

    entries = []
    for entry, dev, test in zip(settings.tasks, tasks.dev, tasks.test, strict=True):
        if isinstance(dev, FitnessTask):
            sizes = {"dev": len(dev.examples), "test": len(test.examples)}
            entry = entry.model_copy(update={**sizes, "margins": dev.by_sign})
        entries.append(entry)
    return {"tasks": entries, "constraints": resolved(settings, objective)}


def complete(name: str, value: Any, before: Any) -> Any:
    """A setting with what an earlier process found out, where it leaves that open.

    :param name: of the setting.
    :param value: its value now, as a settings file has it.
    :param before: its value in the folder of the run.
    """
    if name == "tasks" and isinstance(before, list) and len(before) == len(value):
        pairs = zip(value, before, strict=True)
        return [_complete_task(entry, earlier) for entry, earlier in pairs]
    if name == "constraints" and isinstance(before, dict) and isinstance(value, dict):
        return {task: _complete_constraint(value[task], before.get(task)) for task in value}
    return value


def _complete_task(entry: dict, earlier: dict) -> dict:
    if "fitness" not in entry:
        return entry
    known = {key: earlier[key] for key in OF_FUNCTIONS if key in earlier and key not in entry}
    return {**entry, **known}


def _complete_constraint(entry: Any, earlier: Any) -> Any:
    if not isinstance(entry, dict) or not isinstance(earlier, dict):
        return entry
    if "least" in entry or FOUND in entry or FOUND not in earlier:
        return entry
    return {"against": AGAINST[0], **entry, FOUND: earlier[FOUND]}
