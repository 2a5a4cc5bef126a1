"""What licences ask of a merge, and which of them conflict.

The rules are those of the licences' own texts, in the short. They are no legal advice: a merge
without a conflict here may still break a term that no card mentions.
"""

import re
from collections.abc import Sequence

from evox_evogm.command.licences.parts import Part
from evox_evogm.monitoring.escaping import sanitize

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
# Of no version: version 2 cannot be had together with Apache 2, version 3 can.
ANY_VERSION = ("gpl", "lgpl")


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


def has_rule(licence: str) -> bool:
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
