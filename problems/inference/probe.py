"""What a base gives rightly, found out on this very base with prompts of the run's own tasks.

Batches, padding, shared prefixes, caches, mixed candidates and merged weights all assume something
of a base. The probe compares each with the plain pass: one row without padding, mask or cache. What
differs by more than rounding is switched off, in this order:

1. on a GPU, RMSNorms of one kernel,
2. rows of equal length in a pass, then rows of different length,
3. decoding with a cache, rows that leave it, and rows of different length in it,
4. a static cache, where one may be used,
5. prefixes that are shared, with padding behind them and without,
6. experts by hooks or in the weights, where these differ,
7. different candidates in one batch, layers that they have in common, and their decoding.

A base that gives other logits for the same tokens, or whose later tokens change earlier logits, is
refused. `causal_probe.py` and `encoder_decoder_probe.py` compare their kinds of base,
`compare_modes.py` the two modes.
"""

import logging
from collections.abc import Mapping, Sequence

import torch

from evox_evogm.problems.adapters.stacked_modules import StackedModule
from evox_evogm.problems.adapters.weight_merger import WeightMerger
from evox_evogm.problems.inference.capabilities import Capabilities
from evox_evogm.problems.inference.causal_probe import CausalProbe
from evox_evogm.problems.inference.encoder_decoder import EncoderDecoderModel
from evox_evogm.problems.inference.encoder_decoder_probe import EncoderDecoderProbe
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.prompts import Tokens

log = logging.getLogger(__name__)


def probe_base(
    model: LanguageModel,
    modules: Mapping[str, StackedModule],
    n_coefficients: int,
    prompts: Sequence[Tokens],
    merger: WeightMerger | None = None,
) -> Capabilities:
    """Find out what may be relied on, and log it.

    :param model: the base with its tokenizer. It stays as it is.
    :param modules: the stacked experts.
    :param n_coefficients: n g.
    :param prompts: the tokens of all prompts of the run.
    :param merger: puts experts into the weights; None if the copy would take too much memory.
    :raises ValueError: if the base cannot be used.
    """
    kind = EncoderDecoderProbe if isinstance(model, EncoderDecoderModel) else CausalProbe
    with torch.no_grad():
        found = kind(model, modules, n_coefficients, prompts, merger).find()
    if found.notes:
        for note in found.notes:
            log.warning("base: %s", note)
    else:
        log.info("base: batches, caches and merges agree with plain passes")
    return found
