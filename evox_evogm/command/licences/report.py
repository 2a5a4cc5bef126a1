"""The licences of all parts of a merge together: conflicts, gaps, and the licence of the merge."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from evox_evogm.command.licences.parts import Part, part_of
from evox_evogm.command.licences.rules import (
    ANY_VERSION,
    PERMISSIVE,
    find_conflicts,
    has_rule,
)
from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.problems.inference.find_base import source_of_model
from evox_evogm.problems.lora_merge import LoRAMergeProblem


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
            if part.licence is not None and (of_any_version or not has_rule(part.licence)):
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
    for index, expert in enumerate(problem.experts[: problem.n_given]):
        # With `keep_experts` the regressed one of each stands behind all of these.
        if used is None or any(used[index :: problem.n_given]):
            parts.append(part_of(expert.name, expert.folder))
    return LicenceReport(tuple(parts), find_conflicts(parts))


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
