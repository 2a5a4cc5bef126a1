"""What can be done with experts that are whole models, and what is refused."""

from collections.abc import Mapping, Sequence

import torch

from evox_evogm.problems.adapters.read_adapter import Expert
from evox_evogm.problems.inference.capabilities import Capabilities
from evox_evogm.problems.inference.quantized_base import quantized_as


def first_checkpoint(experts: Sequence[Expert]) -> Expert | None:
    """The first expert that is a whole model, or None."""
    return next((expert for expert in experts if expert.checkpoint is not None), None)


def check_possible(
    experts: Sequence[Expert], modes: Mapping[str, str], objectives: str, regmean
) -> None:
    """Refuse what whole models cannot be asked for, before the base is loaded.

    :param modes: of tasks that have one.
    :param objectives: of the problem.
    :param regmean: what experts are regressed on, None if they are not.
    :raises ValueError: in one sentence.
    """
    found = first_checkpoint(experts)
    if found is None:
        return
    if objectives == "gradients":
        raise ValueError(
            "objectives: expected experts that are adapters for gradients, found the full "
            f"checkpoint {found.name!r}; take outcomes, as SurrogateEvoGM does"
        )
    if "unmerged" in modes.values():
        raise ValueError(
            'mode: expected "auto" or "merged" with experts that are full checkpoints, found '
            f"'unmerged' and the full checkpoint {found.name!r}, which hooks cannot add"
        )
    if regmean is not None:
        raise ValueError(
            "regmean: expected experts that are adapters, whose factors are regressed, found the "
            f"full checkpoint {found.name!r}; leave regmean out"
        )


def check_possible_if_quantized(
    model: torch.nn.Module, experts: Sequence[Expert], modes: Mapping[str, str]
) -> None:
    """Refuse what goes into the weights, if those of the base are quantized.

    :param modes: of tasks that have one.
    :raises ValueError: in one sentence.
    """
    found = quantized_as(model)
    if found is None:
        return
    whole = first_checkpoint(experts)
    if whole is not None:
        raise ValueError(
            f"base: expected one in floating point for the full checkpoint {whole.name!r}, which "
            f"goes into its weights, found a quantized one ({found})"
        )
    if "merged" in modes.values():
        raise ValueError(
            f"mode: expected auto or unmerged on a base that is quantized ({found}), found "
            "'merged': merges cannot go into quantized weights"
        )


def check_adapters_only(experts: Sequence[Expert], what: str) -> None:
    """Refuse to make an adapter of whole models.

    :param what: needs one.
    :raises ValueError: in one sentence.
    """
    found = first_checkpoint(experts)
    if found is not None:
        raise ValueError(
            f"{what}: expected experts that are adapters, found the full checkpoint "
            f"{found.name!r}, whose difference from the base is no product of small factors; "
            "export a whole model (--as model)"
        )


def merged_only(found: Capabilities) -> Capabilities:
    """What the probe found, for experts that only go into the weights.

    :raises ValueError: if weights that change have no effect on this base.
    """
    if not found.merged:
        raise ValueError(
            "base: expected one that computes with merged weights, as full checkpoints need it, "
            f"found that {found.notes[-1]}"
        )
    return found.without("unmerged")
