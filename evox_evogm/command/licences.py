"""The licences of the parts of a merge, read from their cards, and where they conflict.

A licence is read from the metadata of a model card (`README.md`), else from a LICENSE file. Rules
are those of the licences' own texts, in the short. They are no legal advice: a merge without a
conflict here may still break a term that no card mentions.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch

from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.problems.adapters.hub_source import (
    HubSource,
    parse_hub_source,
    snapshot_of,
    source_of_folder,
)
from evox_evogm.problems.inference.base_model import SMOLLM2
from evox_evogm.problems.inference.find_base import source_of_model
from evox_evogm.problems.lora_merge import LoRAMergeProblem

CARD = "README.md"
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
LONGEST_FILE = 200_000  # characters of a card or licence that are read
# What the packaged base is under, which its folder does not say.
PACKAGED = {SMOLLM2: "apache-2.0"}

PERMISSIVE = re.compile(
    r"mit|mit-0|apache-2\.0|bsd(-.*)?|isc|0bsd|zlib|unlicense|cc0-1\.0|cc-by-[234]\.0|"
    r"odc-by|pddl|cdla-permissive-[12]\.0|afl-3\.0|artistic-2\.0|bsl-1\.0|wtfpl|ncsa|postgresql"
)
# A merge with one of these goes out under it. Those of one family can be had together.
COPYLEFT = {
    "gpl-2.0": "GPL 2",
    "gpl-3.0": "GPL 3",
    "agpl-3.0": "GPL 3",
    "lgpl-2.1": "GPL 3",
    "lgpl-3.0": "GPL 3",
    "lgpl": "GPL 3",
    "gpl": "GPL 3",
    "cc-by-sa-4.0": "GPL 3",  # one way, into GPL 3
    "cc-by-sa-3.0": "CC-BY-SA 3",
    "osl-3.0": "OSL 3",
    "eupl-1.1": "EUPL",
    "eupl-1.2": "EUPL",
    "mpl-2.0": "GPL 3",
    "odbl": "ODbL",
    "cdla-sharing-1.0": "CDLA sharing",
}
# Licences with terms of use of their own, which go along with every derivative.
OWN_TERMS = re.compile(
    r"llama.*|gemma|qwen.*|deepseek|.*openrail.*|bigscience.*|creativeml.*|bigcode.*|apple-.*|"
    r"intel-research|h-research|grok2-community|fair-noncommercial-research-license|"
    r"c-uda|ofl-1\.1|lppl-1\.3c"
)
NON_COMMERCIAL = re.compile(r"cc-by-nc.*|fair-noncommercial-research-license|.*-nc-.*")
NO_DERIVATIVES = re.compile(r"cc-by(-nc)?-nd.*")
# What cards have in place of a licence.
NOTHING = ("unknown", "other", "none", "unlicensed")
# Of no version: version 2 cannot be had together with Apache 2, version 3 can.
ANY_VERSION = ("gpl", "lgpl")
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


@dataclass(frozen=True)
class Part:
    """A part of a merge and its licence.

    :param name: `base`, or the name of the expert.
    :param licence: in small letters as the hub has it, such as `apache-2.0`; None if unknown.
    :param away: whether it is on the hub, and its card was not to be had here.
    """

    name: str
    licence: str | None
    away: bool = False


@dataclass(frozen=True)
class LicenceReport:
    """The licences of all parts of a merge.

    :param parts: the base, then every expert whose coefficient is not 0.
    :param conflicts: a sentence for every two licences that cannot be had together.
    """

    parts: tuple[Part, ...]
    conflicts: tuple[str, ...] = field(default=())

    @property
    def unknown(self) -> tuple[str, ...]:
        """The names of parts whose licence is not known."""
        return tuple(part.name for part in self.parts if part.licence is None)

    @property
    def unruled(self) -> tuple[str, ...]:
        """The licences whose terms no rule here knows, each with the first part that has it."""
        names = {part.licence for part in self.parts}
        found: dict[str, str] = {}
        for part in self.parts:
            of_any_version = part.licence in ANY_VERSION and "apache-2.0" in names
            if part.licence is not None and (of_any_version or not _has_rule(part.licence)):
                found.setdefault(part.licence, part.name)
        return tuple(f"{licence} ({sanitize(name)})" for licence, name in found.items())

    @property
    def licence(self) -> str | None:
        """The licence of the merge: the strictest of its parts; None if that is not clear."""
        if self.conflicts or self.unknown or self.unruled:
            return None
        found = {str(part.licence) for part in self.parts}
        strict = sorted(one for one in found if not PERMISSIVE.fullmatch(one))
        if len(strict) == 1:
            return strict[0]
        if strict:
            return None
        if len(found) == 1:
            return found.pop()
        # Apache asks for more than MIT and BSD do: notices, and a line on changes.
        return "apache-2.0" if "apache-2.0" in found else None

    def sentence(self) -> str | None:
        """What stands against giving the merge on, or None."""
        faults = list(self.conflicts)
        if self.unknown:
            names = []
            for part in self.parts:
                if part.licence is None:
                    why = " (its card is not on this machine)" if part.away else ""
                    names.append(f"{sanitize(part.name)}{why}")
            faults.append(f"the licence of {', '.join(names)} is unknown")
        if self.unruled:
            faults.append(f"no rule here knows the terms of {', '.join(self.unruled)}")
        return "; ".join(faults) or None

    def as_table(self) -> dict:
        """What `result.json` and the metadata of a card say."""
        parts = {part.name: part.licence or "unknown" for part in self.parts}
        return {
            "parts": parts,
            "conflicts": list(self.conflicts),
            "unknown": list(self.unknown),
            "unruled": list(self.unruled),
            "licence": self.licence,
        }


def licences_of(problem: LoRAMergeProblem, used: Sequence[bool] | None = None) -> LicenceReport:
    """The licences of the base and the experts of a merge.

    :param used: whether each expert has a coefficient other than 0; all by default.
    """
    model = problem.language_model.model
    loaded_by = str(getattr(model.config, "_name_or_path", "") or "")
    at_commit = None if Path(loaded_by).is_dir() else source_of_model(model)
    parts = [part_of("base", str(at_commit or loaded_by))]
    for index, expert in enumerate(problem.experts):
        if used is None or used[index]:
            parts.append(part_of(expert.name, expert.folder))
    return LicenceReport(tuple(parts), find_conflicts(parts))


def part_of(name: str, source) -> Part:
    """A part of a merge with its licence.

    :param source: as `read_licence` takes it.
    """
    licence = read_licence(source)
    on_hub = _repository_of(snapshot_of(source) or source) is not None
    away = licence is None and on_hub and _find(source, CARD) is None
    return Part(name, licence, away)


def used_experts(problem: LoRAMergeProblem, coefficients: torch.Tensor) -> list[bool]:
    """Whether each expert has a coefficient other than 0.

    :param coefficients: `(n g,)` effective coefficients.
    """
    return problem.groups.by_expert(coefficients).ne(0).any(-1).tolist()


def check_licences(report: LicenceReport, *, strict: bool) -> None:
    """Refuse a merge whose licences conflict, are unknown or in no rule, if that is wished.

    :raises ValueError: in one sentence.
    """
    fault = report.sentence()
    if strict and fault is not None:
        raise ValueError(
            f"strict_licences: expected licences that can be had together, found that {fault}"
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


def licence_of_text(text: str) -> str | None:
    """The licence whose text a file holds, or None if it is none of the known ones."""
    beginning = " ".join(text[:4000].lower().split())
    for pattern, licence in TEXTS:
        if re.search(pattern.replace(r"\s+", " "), beginning):
            return licence
    return None


def find_conflicts(parts: Sequence[Part]) -> tuple[str, ...]:
    """A sentence for every two licences that cannot be had together, and for those that forbid
    merges.
    """
    found: dict[str, str] = {}  # the first part that has each licence
    for part in parts:
        if part.licence is not None:
            found.setdefault(part.licence, part.name)
    conflicts = []
    licences = sorted(found)
    for place, one in enumerate(licences):
        if NO_DERIVATIVES.fullmatch(one):
            conflicts.append(f"{one} ({sanitize(found[one])}) does not allow derivatives")
        for other in licences[place + 1 :]:
            reason = _why_not_together(one, other)
            if reason is not None:
                pair = f"{one} ({sanitize(found[one])}) and {other} ({sanitize(found[other])})"
                conflicts.append(f"{pair} {reason}")
    return tuple(conflicts)


def _why_not_together(one: str, other: str) -> str | None:
    """Why no work can be under both licences, or None."""
    both_strict = not (PERMISSIVE.fullmatch(one) or PERMISSIVE.fullmatch(other))
    families = (_family(one), _family(other))
    if "GPL 2" in families and "apache-2.0" in (one, other):
        return "cannot be had together: GPL 2 forbids the patent terms of Apache 2"
    if not both_strict or families[0] == families[1]:
        return None
    if None in families:  # of terms that no rule here knows
        return None
    return "each ask that a merge is given on under their own terms"


def _has_rule(licence: str) -> bool:
    """Whether it is known what a licence asks of derivatives."""
    known = PERMISSIVE.fullmatch(licence) or NO_DERIVATIVES.fullmatch(licence)
    return bool(known) or _family(licence) is not None


def _family(licence: str) -> str | None:
    """What a licence asks of derivatives: a name that licences share which go together.

    :return: None if it is permissive or of no known kind.
    """
    if licence in COPYLEFT:
        return COPYLEFT[licence]
    if NON_COMMERCIAL.fullmatch(licence):
        return "non-commercial"
    if OWN_TERMS.fullmatch(licence):
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
