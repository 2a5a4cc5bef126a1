"""The names that a base has for the modules of an adapter.

Models change their names from version to version, and with their class. transformers has rules that
turn the names in a checkpoint into those of a model, and the modules of an adapter are named as in
a checkpoint. So the same rules find the modules of an adapter that was trained under other names.
Mixtures of experts moreover keep the weights of all experts in one parameter, see `parameters.py`.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from evox_evogm.problems.adapters.adapter_config import CONFIG, rank_and_alpha
from evox_evogm.problems.adapters.layers import is_layer
from evox_evogm.problems.adapters.parameters import factors_of_parameters, fuse_experts
from evox_evogm.problems.adapters.read_adapter import Expert, Factors, check_rank, describe
from evox_evogm.problems.adapters.tensor_names import BIAS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def with_names_of(model: "PreTrainedModel", expert: Expert) -> Expert:
    """The adapter with the names that the base has for its modules.

    :param model: the base.
    :return: the adapter. Modules that the base does not have keep the names of the file.
    :raises ValueError: if plain peft would load the adapter otherwise, in one sentence.
    """
    if expert.settings is None:
        return expert
    where = describe(expert.name, expert.folder)
    layers = dict(model.named_modules())
    modules = expert.modules
    if expert.settings.target_parameters:
        modules = _find_parameters(expert, model, where)
    unknown = {name for name, factors in modules.items() if not _is_known(name, factors, layers)}
    unknown |= {copy for copy in expert.base_copies if copy.removesuffix(BIAS) not in layers}
    if not unknown:
        return replace(expert, modules=modules)
    rename = renaming_of(model)
    new_names = {}
    for name in sorted(unknown):
        layer = name.removesuffix(BIAS)
        new_names[name] = rename(layer) + name.removeprefix(layer)
    known: dict[str, Factors] = {}
    others: dict[str, Factors] = {}
    for name, factors in modules.items():
        new_name = new_names.get(name, name)
        if not _is_known(new_name, factors, layers):
            others[name] = factors
            continue
        if new_name in known:
            raise ValueError(
                f"{where}: expected one lora_A and lora_B for {new_name}, found two of each, "
                f"also as {name!r}"
            )
        _check_scale(expert, name, new_name, where)
        known[new_name] = factors
    if others:
        known |= fuse_experts(others, expert.settings, model, where)
    copies = {new_names.get(copy, copy): key for copy, key in expert.base_copies.items()}
    return replace(expert, modules=known, base_copies=copies)


def split_off_unused(model: "PreTrainedModel", expert: Expert) -> tuple[Expert, list[str]]:
    """Leave out modules of parts that this class of the base does without, as those of images.

    :return: the adapter, and the names of the modules that were left out: those that transformers
        leaves unread in a checkpoint for this class.
    """
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    layers = dict(model.named_modules())
    kept: dict[str, Factors] = {}
    unused = []
    for name, factors in expert.modules.items():
        is_unread = any(re.search(pattern, f"{name}.weight") for pattern in patterns)
        if is_unread and not _is_known(name, factors, layers):
            unused.append(name)
        else:
            kept[name] = factors
    return (replace(expert, modules=kept), unused) if kept else (expert, [])


def renaming_of(model: "PreTrainedModel") -> Callable[[str], str]:
    """A function from the name of a module in a checkpoint to its name in a model.

    It applies the rules of transformers to the name of the module's weight.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    # Models with code of their own may still have their rules as an attribute.
    own_rules = getattr(model, "_checkpoint_conversion_mapping", None)
    rules = get_model_conversion_mapping(model, key_mapping=own_rules or None)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]

    def rename(module: str) -> str:
        weight, _ = rename_source_key(f"{module}.weight", renamings, [])
        return weight.removesuffix(".weight")

    return rename


def _is_known(name: str, factors: Factors, layers: dict) -> bool:
    return factors.is_parameter or is_layer(layers.get(name))


def _find_parameters(expert: Expert, model: "PreTrainedModel", where: str) -> dict[str, Factors]:
    """The modules of an adapter that also targets parameters; the ranks of layers are checked."""
    settings = expert.settings
    assert settings is not None
    modules = factors_of_parameters(expert.modules, settings, model, where)
    for name, factors in modules.items():
        if not factors.is_parameter:
            rank, _ = rank_and_alpha(settings, name, where)
            check_rank(name, factors.a, factors.b, rank, where)
    return modules


def _check_scale(expert: Expert, name: str, new_name: str, where: str) -> None:
    """Refuse patterns that fit the name of a module in the file, and not the one in the base."""
    assert expert.settings is not None
    own = rank_and_alpha(expert.settings, name, where)
    found = rank_and_alpha(expert.settings, new_name, where)
    if own != found:
        raise ValueError(
            f"{where}: expected patterns in {CONFIG} that fit {new_name}, the name of {name} "
            f"in this base, found rank and alpha {own} by the old name and {found} by the new one; "
            "plain peft would use the latter"
        )
