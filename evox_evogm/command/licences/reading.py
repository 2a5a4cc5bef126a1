"""The licence of a base or an adapter: from the metadata of its card, else from a LICENSE file."""

import re
from functools import cache
from pathlib import Path

from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.problems.adapters.hub_source import (
    HubSource,
    parse_hub_source,
    snapshot_of,
    source_of_folder,
)
from evox_evogm.problems.inference.base_model import SMOLLM2

CARD = "README.md"
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
LONGEST_FILE = 200_000  # characters of a card or licence that are read
# What the packaged base is under, which its folder does not say.
PACKAGED = {SMOLLM2: "apache-2.0"}
# What cards have in place of a licence.
NOTHING = ("unknown", "other", "none", "unlicensed")
# The first words of licence files.
TEXTS = (
    (r"gnu affero general public license\s+version 3", "agpl-3.0"),
    (r"gnu lesser general public license\s+version 3", "lgpl-3.0"),
    (r"gnu lesser general public license\s+version 2", "lgpl-2.1"),
    (r"gnu general public license\s+version 3", "gpl-3.0"),
    (r"gnu general public license\s+version 2", "gpl-2.0"),
    (r"apache license\s+version 2\.0", "apache-2.0"),
    (r"mozilla public license[, ]+version 2\.0", "mpl-2.0"),
    (r"attribution-noncommercial-noderivatives 4\.0", "cc-by-nc-nd-4.0"),
    (r"attribution-noncommercial-sharealike 4\.0", "cc-by-nc-sa-4.0"),
    (r"attribution-noncommercial 4\.0", "cc-by-nc-4.0"),
    (r"attribution-sharealike 4\.0", "cc-by-sa-4.0"),
    (r"attribution-noderivatives 4\.0", "cc-by-nd-4.0"),
    (r"attribution 4\.0 international", "cc-by-4.0"),
    (r"cc0 1\.0 universal", "cc0-1.0"),
    (r"llama 3\.3 community license", "llama3.3"),
    (r"llama 3\.2 community license", "llama3.2"),
    (r"llama 3\.1 community license", "llama3.1"),
    (r"meta llama 3 community license", "llama3"),
    (r"llama 2 community license", "llama2"),
    (r"gemma terms of use", "gemma"),
    (r"qwen (research )?license", "qwen"),
    (r"permission is hereby granted, free of charge", "mit"),
    (r"redistribution and use in source and binary forms", "bsd"),
)


def read_licence(source) -> str | None:
    """The licence of a base or an adapter, or None if it is not said.

    :param source: a folder, or a hub id, whose card is fetched where the hub can be reached. Else
        the files in the local cache are read.
    :return: in small letters as the hub has it, such as `apache-2.0`.
    """
    for name in PACKAGED:
        if source and Path(str(source)).name == name:
            return PACKAGED[name]
    for place in (source, snapshot_of(source)):  # what a repository says holds for its folders
        card = _find(place, CARD)
        named = None if card is None else _licence_of_card(card)
        if named is not None:
            return named
        for name in LICENCE_FILES:
            file = _find(place, name)
            if file is not None:
                return licence_of_text(_read(file))
    return None


def card_is_away(source) -> bool:
    """Whether a base or an adapter is on the hub, and its card was not to be had here."""
    on_hub = _repository_of(snapshot_of(source) or source) is not None
    return on_hub and _find(source, CARD) is None


def licence_of_text(text: str) -> str | None:
    """The licence whose text a file holds, or None if it is none of the known ones."""
    beginning = " ".join(text[:4000].lower().split())
    for pattern, licence in TEXTS:
        if re.search(pattern.replace(r"\s+", " "), beginning):
            return licence
    return None


def _licence_of_card(card: Path) -> str | None:
    """The licence in the metadata of a model card, or None."""
    from huggingface_hub import metadata_load

    try:
        values = metadata_load(card) or {}
        named = values.get("license") or values.get("licence")
        if named == "other":
            named = values.get("license_name")
    except Exception:  # whatever YAML and the hub's library make of a damaged card
        return None
    if isinstance(named, list) and len(named) == 1:
        named = named[0]
    if not isinstance(named, str) or not named.strip():
        return None
    named = sanitize(named).strip().lower().replace(" ", "-")
    return None if named in NOTHING else named


def _find(source, name: str) -> Path | None:
    """A file of a folder, or of a hub id."""
    if not source:
        return None
    file = Path(str(source)) / name
    if file.is_file():
        return file
    # A snapshot in the cache has only the files that were asked for.
    found = _repository_of(source)
    return None if found is None else _from_hub(found.repository, found.revision, name)


def _repository_of(source) -> HubSource | None:
    """The repository whose card is that of a hub id or a snapshot in the cache, or None."""
    snapshot = source_of_folder(source)
    if snapshot is None:
        return parse_hub_source(str(source))  # may be a folder of a repository
    return None if snapshot.folder else snapshot


@cache
def _from_hub(repository: str, revision: str | None, name: str) -> Path | None:
    """A card from the hub, or a file of the local cache; None where it is in neither."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if name == CARD:
        try:
            return Path(hf_hub_download(repository, name, revision=revision, etag_timeout=3))
        except Exception:  # no network, no such file or repository, no right to it
            pass
    try:
        cached = try_to_load_from_cache(repository, name, revision=revision)
    except ValueError:  # no name of a repository
        return None
    return Path(cached) if isinstance(cached, str) else None


def _read(path: Path) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(LONGEST_FILE)
