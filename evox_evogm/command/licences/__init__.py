"""The licences of the parts of a merge, read from their cards, and where they conflict.

| file | what |
| --- | --- |
| `reading.py` | the licence that a card or a file says |
| `rules.py` | what each licence asks of a merge, and which conflict; no legal advice |
| `parts.py`, `report.py` | the base and the experts with their licences, and what follows |
"""

from evox_evogm.command.licences.parts import Part, part_of
from evox_evogm.command.licences.reading import read_licence
from evox_evogm.command.licences.report import (
    LicenceReport,
    check_licences,
    licences_of,
    used_experts,
)
from evox_evogm.command.licences.rules import find_conflicts

__all__ = [
    "LicenceReport",
    "Part",
    "check_licences",
    "find_conflicts",
    "licences_of",
    "part_of",
    "read_licence",
    "used_experts",
]
