"""The report that a finished run leaves: `report.md`."""

from evox_evogm.command.confirm import confirm_cells, remarks_on_confirm
from evox_evogm.command.domains import domain_cells
from evox_evogm.command.experts import count_given, regressed_on
from evox_evogm.command.glossary import glossary
from evox_evogm.command.objective_remarks import (
    front_cells,
    objective_cells,
    remarks_on_objective,
)
from evox_evogm.command.score_table import has_errors, remarks_on_merge, table_cells
from evox_evogm.command.significance import (
    further_remarks,
    not_beyond_chance,
    remarks_on_chance,
)
from evox_evogm.command.templates import render
from evox_evogm.monitoring.counted import counted
from evox_evogm.monitoring.escaping import sanitize


def report_markdown(result: dict) -> str:
    """The report of a run.

    :param result: what `result.json` holds.
    """
    remarks = remarks_on_merge(result)
    remarks += remarks_on_confirm(result.get("confirm"))
    domains = result.get("domains", {})
    return render(
        "report.md.j2",
        what_was_merged=what_was_merged(result),
        table=_score_cells(result),
        has_errors=has_errors(result["scores"]),
        remarks=remarks,
        objective_remarks=remarks_on_objective(result),
        objective_table=objective_cells(result),
        confirm_table=confirm_cells(result.get("confirm")),
        front_table=front_cells(result.get("front", [])),
        domain_table=domain_cells(result["scores"], domains),
        protocols=protocols(result["tasks"]),
        chance=remarks_on_chance(result) + further_remarks(result) + not_beyond_chance(result),
        glossary=glossary(result, pictures=False),
        **{"keep_experts": False, **result, "domains": domains},
    )


def what_was_merged(result: dict) -> str:
    """One sentence: algorithm, experts, base, evaluations and tasks.

    :param result: what `result.json` holds.
    """
    base = sanitize(result.get("base", "the base model"))
    dev = sum(task["dev"] for task in result["tasks"].values())
    kind = "expert" if result.get("checkpoints") else "LoRA expert"
    experts = counted(count_given(result), kind)
    if result["regmean"]:
        form = "as they are and regressed" if result.get("keep_experts") else "regressed"
        experts += f", {form} on {regressed_on(result['regmean'])},"
    count = result.get("minibatches", 1)
    parts = f", each on one of {count} parts of" if count > 1 else ", on"
    return (
        f"{result['algorithm']} searched merges of {experts} of {base} in "
        f"{counted(result['evaluations'], 'evaluation')}{parts} {counted(dev, 'dev example')} of "
        f"{counted(len(result['tasks']), 'task')}."
    )


def protocols(tasks: dict[str, dict]) -> list[str]:
    """The protocols that tasks were scored by. Tasks of functions and harnesses have none.

    :param tasks: as in `result["tasks"]`.
    """
    return sorted({task["protocol"] for task in tasks.values() if "protocol" in task})


def _score_cells(result: dict) -> list[list[str]]:
    rows = result["scores"]
    return table_cells(rows, list(rows[0]["dev"]))
