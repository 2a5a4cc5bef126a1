"""Check that experts fit together and fit a base model, so that their merge is exact.

Adapters are often found beside a base that only resembles theirs: another size, another vocabulary,
another release. Whatever of this can be seen in the files is refused with one sentence.
"""

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from evox_evogm.problems.adapters.check_modules import check_base_copies, fit_modules
from evox_evogm.problems.adapters.names_on_base import split_off_unused, with_names_of
from evox_evogm.problems.adapters.read_adapter import Expert, describe
from evox_evogm.problems.adapters.same_base import note_on_names, warning_on_names
from evox_evogm.problems.adapters.vocabulary import VocabularyDifference, compare_vocabulary
from evox_evogm.problems.checkpoints.base_weights import BaseWeights
from evox_evogm.problems.checkpoints.fit_checkpoint import fit_checkpoint, note_on_memory
from evox_evogm.problems.checkpoints.full_checkpoint import has_checkpoints

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


class Fit(NamedTuple):
    """Experts that fit a base.

    :param experts: with the names that the base has for their modules.
    :param notes: sentences about what was taken for the same although it differs.
    """

    experts: list[Expert]
    notes: list[str]


def check_together(experts: Sequence[Expert]) -> None:
    """Refuse an empty list and duplicate names.

    :raises ValueError: one sentence saying which.
    """
    if not experts:
        raise ValueError("experts: expected at least one adapter folder, found none")
    name, times = Counter(expert.name for expert in experts).most_common(1)[0]
    if times > 1:
        folders = ", ".join(str(expert.folder) for expert in experts if expert.name == name)
        raise ValueError(
            f"experts: expected different names, found {name!r} {times} times ({folders}); "
            "give them names"
        )


def fit_experts(
    experts: Sequence[Expert],
    model: "PreTrainedModel",
    tokenizer=None,
    *,
    same_base: bool = False,
    heads: Collection[str] = (),
) -> Fit:
    """Give experts the names of the base, and refuse those that do not fit it.

    :param model: the base that the experts are merged into.
    :param tokenizer: its tokenizer, to compare with a tokenizer in an adapter's folder.
    :param same_base: whether the user says that all names of base models stand for one.
    :param heads: the modules of whole models that are not merged, as `read_expert` takes them.
    :return: the experts, and what was taken for the same although it differs. The notes are logged.
    :raises ValueError: one sentence saying which adapter, what was found and what to do.
    """
    base = getattr(model.config, "_name_or_path", "") or ""
    named = [("the base", base)]  # who names the base, and how
    fitted, notes = [], []
    base_weights = BaseWeights(model) if has_checkpoints(experts) else None
    for expert in experts:
        named.append((f"expert {expert.name!r}", expert.base))
        if base_weights is None or expert.checkpoint is None:
            fitting, found = _fit_expert(expert, model, tokenizer)
        else:
            fitting, found = fit_checkpoint(expert, model, tokenizer, base_weights, heads)
        fitted.append(fitting)
        notes += found
    if base_weights is not None:
        notes += note_on_memory(fitted)
    for note in notes:
        log.info("%s", note)
    return Fit(fitted, notes + _note_names(named, same_base))


def _note_names(named: Sequence[tuple[str, str]], same_base: bool) -> list[str]:
    """The note on the names of the base, logged, or none.

    :param named: who names the base, and the name.
    :param same_base: whether names that contradict each other need no warning.
    """
    warning = None if same_base else warning_on_names(named)
    if warning is not None:
        log.warning("%s", warning)
        return [warning]
    note = note_on_names(base for _, base in named)
    if note is not None:
        log.info("%s", note)
        return [note]
    return []


def _fit_expert(expert: Expert, model: "PreTrainedModel", tokenizer) -> tuple[Expert, list[str]]:
    """An expert with the names of the base, and the notes on it."""
    where = describe(expert.name, expert.folder)
    difference = VocabularyDifference()
    if tokenizer is not None:
        difference = compare_vocabulary(expert.folder, tokenizer, where)
    expert, unused = split_off_unused(model, with_names_of(model, expert))
    modules = fit_modules(expert, model, difference, where)
    more_rows = check_base_copies(expert, model, difference, where)
    for name, factors in modules.items():
        more_rows = more_rows or factors is not expert.modules[name]
    if difference.tokens:
        raise ValueError(
            f"{where}: expected the vocabulary of the base, "
            f"found a tokenizer that differs in {difference.tokens} tokens; "
            "use the base that this adapter was trained on"
        )
    notes = []
    if unused:
        notes.append(
            f"{where}: left out {len(unused)} modules, as {unused[0]!r}: {type(model).__name__} "
            "does without this part of the model"
        )
    if difference.pads or more_rows:
        notes.append(f"{where}: left out its padding token, which the base does not have")
    if (expert.folder / "config.json").is_file():
        notes.append(f"{where}: took only the adapter of a folder that also holds a model")
    return replace(expert, modules=modules), notes
