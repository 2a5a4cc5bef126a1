"""The pages that a finished run leaves: its report, and the card of the exported adapter."""

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from evox_evogm.command.score_table import table_cells
from evox_evogm.command.templates import render

TAGS = ["lora", "merge", "evogm", "evox"]


def report_markdown(result: dict) -> str:
    """The report of a run.

    :param result: what `result.json` holds.
    """
    return render("report.md.j2", table=_score_cells(result), **result)


def model_card(result: dict, base: str) -> str:
    """The card of the adapter that a run exported, as the hub and peft have it: `README.md`.

    :param result: what `result.json` holds.
    :param base: the name of the base model. Where it is a hub id the metadata has it too.
    """
    data = ModelCardData(
        base_model=base if _is_hub_id(base) else None,
        library_name="peft",
        tags=TAGS,
    )
    text = render("model_card.md.j2", table=_score_cells(result), base=base, **result)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def _score_cells(result: dict) -> list[list[str]]:
    rows = result["scores"]
    return table_cells(rows, list(rows[0]["dev"]))


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name
