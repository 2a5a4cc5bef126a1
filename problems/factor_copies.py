"""How much memory it takes to score a merge without one of the experts in unmerged mode.

Channels that no candidate uses are left out, for which the others are copied. The copy is taken
from the memory of passes (`share_batches`).
"""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evox_evogm.problems.population_scorer import PopulationScorer

GIB = 2**30


def bytes_of_experts(scorer: "PopulationScorer") -> list[int]:
    """The size of the stacked factors of each expert."""
    groups = scorer.groups.count
    sizes = [0] * (scorer.n_coefficients // groups)
    for module in scorer.stacked.values():
        of_channel = (module.a.nbytes + module.b.nbytes) // module.rank
        for expert in (module.coefficient // groups).tolist():
            sizes[expert] += of_channel
    return sizes


def note_of_copies(scorer: "PopulationScorer") -> list[str]:
    """A note if the copy for a merge without an expert takes over half of `max_memory`."""
    modes = scorer.modes.values()
    sizes = bytes_of_experts(scorer)
    largest = sum(sizes) - min(sizes)
    is_merged = bool(modes) and all(mode == "merged" for mode in modes)
    if scorer.differences is not None or is_merged or largest <= scorer.max_memory / 2:
        return []
    return [
        "a merge that is scored alone, without one of the experts, copies the factors of the "
        f"others, up to {largest / GIB:.2g} GiB, which is over half of max_memory "
        f"({scorer.max_memory / GIB:.2g} GiB): its passes are small and slow; set max_memory: "
        f"{math.ceil(20 * largest / GIB) / 10:g}, in GiB, or mode: merged"
    ]
