"""The pages that a finished run leaves: its report, and the card of the exported adapter."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from evox_evogm.command.score_table import remarks_on_merge, table_cells
from evox_evogm.command.templates import render
from evox_evogm.problems.adapters.same_base import hub_id

TAGS = ["lora", "merge", "evogm", "evox"]


def report_markdown(result: dict) -> str:
    """The report of a run.

    :param result: what `result.json` holds.
    """
    remarks = remarks_on_merge(result["scores"])
    return render("report.md.j2", table=_score_cells(result), remarks=remarks, **result)


def model_card(result: dict, base: str, folder: Path) -> str:
    """The card of the adapter that a run exported, as the hub and peft have it: `README.md`.

    :param result: what `result.json` holds.
    :param base: the name of the base model. Where it is a hub id the metadata has it too.
    :param folder: the folder that paths in the settings are relative to.
    """
    data = ModelCardData(
        base_model=base if _is_hub_id(base, folder) else None,
        library_name="peft",
        tags=TAGS,
    )
    text = render("model_card.md.j2", table=_score_cells(result), base=base, **result)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def _score_cells(result: dict) -> list[list[str]]:
    rows = result["scores"]
    return table_cells(rows, list(rows[0]["dev"]))


def _is_hub_id(name: str, folder: Path) -> bool:
    """Whether a name has the form owner/name, and is no path here or from a folder."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return hub_id(name) == name and not (folder / name).exists()
