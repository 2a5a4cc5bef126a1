"""Upload an export to the Hugging Face hub."""

import json
from pathlib import Path

from huggingface_hub import HfApi, metadata_load
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import HFValidationError, validate_repo_id

from evox_evogm.command.exports.mergekit_recipe import RECIPE
from evox_evogm.command.model_card import MERGE_LICENCES
from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.problems.adapters.adapter_config import CONFIG
from evox_evogm.problems.adapters.same_base import hub_id

CARD = "README.md"
# What a crash may leave beside whole files, and what only this machine needs.
NOT_UPLOADED = ["*.part", "*.lock", ".*"]


def push_to_hub(
    folder,
    repo_id: str,
    *,
    private: bool = True,
    strict_licences: bool = False,
    token: str | None = None,
    api: HfApi | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload an export with its card.

    :param folder: as `export_adapter` and the like wrote it.
    :param repo_id: owner/name. The repository is made if it is missing.
    :param private: whether only its owner may see it. A repository that is there already keeps its
        setting, and a public one is refused unless this is False.
    :param strict_licences: refuse where the card says that licences conflict or are unknown.
    :param token: by default the one that `hf auth login` keeps.
    :param api: what talks to the hub.
    :param commit_message: of the upload.
    :return: the address of the repository.
    :raises ValueError: if the folder is no export that others can load, or licences forbid it.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    check_card(folder, strict_licences=strict_licences)
    check_base(folder)
    api = HfApi(token=token) if api is None else api
    _check_visibility(api, repo_id, private=private)
    url = api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model")
    api.upload_folder(
        folder_path=str(folder),
        repo_id=repo_id,
        repo_type="model",
        commit_message=commit_message or "Upload a merge made with evox-evogm",
        ignore_patterns=NOT_UPLOADED,
    )
    return str(url)


def check_repo_id(repo_id: str) -> None:
    """Refuse what is no name of a repository.

    :raises ValueError: in one sentence.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"repo_id: expected owner/name, found {repo_id!r}: {reason}") from error
    if repo_id.count("/") != 1:
        raise ValueError(f"repo_id: expected owner/name, found {repo_id!r}")


def check_card(folder: Path, *, strict_licences: bool) -> None:
    """Refuse a folder without the card of a merge, or with one that forbids to give it on.

    :raises ValueError: in one sentence.
    """
    card = folder / CARD
    if not card.is_file():
        raise ValueError(f"folder: expected an export with its {CARD}, found none in {folder}")
    if card.read_text(encoding="utf-8").startswith("# Do not use"):
        raise ValueError(f"folder: expected an export that can be used, found {folder} marked")
    licences = (metadata_load(card) or {}).get(MERGE_LICENCES)
    if not strict_licences:
        return
    if not isinstance(licences, dict):
        raise ValueError(
            f"strict_licences: expected a card that says the licences of all parts, found {card} "
            "without them; export the merge again"
        )
    faults = [str(conflict) for conflict in licences.get("conflicts") or []]
    for name in licences.get("unknown") or []:
        faults.append(f"the licence of {sanitize(str(name))} is unknown")
    for name in licences.get("unruled") or []:
        faults.append(f"no rule here knows {sanitize(str(name))}")
    if faults:
        raise ValueError(
            "strict_licences: expected licences that can be had together, "
            f"found that {'; '.join(faults)}"
        )


def check_base(folder: Path) -> None:
    """Refuse a merge whose base, or a recipe whose parts, only this machine can find.

    :raises ValueError: in one sentence.
    """
    if (folder / RECIPE).is_file():
        raise ValueError(
            f"folder: expected an adapter or a model, found {RECIPE} of mergekit, which names "
            "folders of this machine"
        )
    config = folder / CONFIG
    if not config.is_file():
        if not (metadata_load(folder / CARD) or {}).get("base_model"):
            raise ValueError(
                f"base: expected the hub id of the base in {CARD}, found none; export the model "
                "again with a base of the form owner/name"
            )
        return
    base = str(json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path") or "")
    if hub_id(base) != base:
        raise ValueError(
            f"base: expected the hub id of the base in {CONFIG}, found {base!r}, which others "
            "cannot load; export the adapter again with a base of the form owner/name"
        )


def _check_visibility(api: HfApi, repo_id: str, *, private: bool) -> None:
    """Refuse to put into the open what was to be private.

    :raises ValueError: if the repository is there and public.
    """
    if not private:
        return
    try:
        found = api.repo_info(repo_id, repo_type="model")
    except RepositoryNotFoundError:
        return
    if found.private is False:
        raise ValueError(
            f"private: expected a new or private repository, found {repo_id}, which is public; "
            "take another name, or say that it may be public"
        )
