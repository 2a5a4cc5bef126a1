"""What a user should know of experts that can be merged: odd ones, other templates, checkpoints."""

import logging
from collections.abc import Sequence

from evox_evogm.problems.adapters.odd_experts import warnings_of_odd_experts
from evox_evogm.problems.adapters.read_adapter import Expert, describe
from evox_evogm.problems.adapters.tokenizer_notes import notes_on_tokenizers
from evox_evogm.problems.adapters.trainer_folders import note_on_checkpoint

log = logging.getLogger(__name__)


def notes_on_experts(experts: Sequence[Expert], tokenizer) -> list[str]:
    """Sentences about experts. They are logged: as warnings those about odd ones.

    :param experts: that fit one base, as `fit_experts` returns them.
    :param tokenizer: the base's.
    """
    notes = []
    for expert in experts:
        where = describe(expert.name, expert.folder)
        note = note_on_checkpoint(expert.folder, expert.name, where)
        if note is not None:
            notes.append(note)
    notes += notes_on_tokenizers(experts, tokenizer)
    for note in notes:
        log.info("%s", note)
    return notes + warnings_of_odd_experts(experts)
