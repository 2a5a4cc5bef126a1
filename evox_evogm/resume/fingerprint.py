"""Digests of what a workflow was made with, and of what its algorithm keeps outside its state.

A later process goes on with a search only if its workflow has the same fingerprint. It could not
go on if a step changed something that the saved state does not hold.
"""

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import torch

RANDOM = "random state"  # of the CPU's generator
PLAIN = (bool, int, float, str)  # types whose `repr` is the same in every process


def fingerprint(workflow) -> dict[str, str]:
    """What a workflow was made with.

    Settings of the algorithm are its attributes that are numbers, texts, lists of these, or frozen
    dataclasses. An attribute whose name begins with an underscore is derived from the others and
    does not count.

    :param workflow: a `StdWorkflow` before its first step.
    :return: digests by name: of its tensors, of the settings of its algorithm, and of the random
        state of the CPU.
    """
    digests = {name: digest(value) for name, value in workflow.state_dict().items()}
    for name, value in own_attributes(workflow.algorithm).items():
        text = setting_as_text(value)
        if text is not None and not name.startswith("_"):
            digests[f"algorithm.{name}"] = digest(text.encode())
    digests[RANDOM] = digest(torch.get_rng_state())
    return digests


def outside_the_state(algorithm: torch.nn.Module) -> dict[str, str]:
    """Digests of whatever an algorithm keeps beside its parameters and buffers.

    :return: by path and name; without what cannot be pickled.
    """
    digests = {}
    for path, module in algorithm.named_modules():
        for name, value in own_attributes(module).items():
            try:
                content = value if isinstance(value, torch.Tensor) else pickle.dumps(value)
            except Exception:  # functions and the like, which hold no state of a search
                continue
            digests[f"{path}.{name}".lstrip(".")] = digest(content)
    return digests


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> str | None:
    """The first name under which two tables differ, in quotes, or None."""
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) != other.get(name):
            return repr(name)
    return None


def own_attributes(module: torch.nn.Module) -> dict[str, Any]:
    """The attributes of a module that torch does not keep for it."""
    of_torch = vars(torch.nn.Module())
    return {name: value for name, value in vars(module).items() if name not in of_torch}


def setting_as_text(value: Any) -> str | None:
    """A number, text, list of these or frozen dataclass as text; None for anything else.

    The `repr` of other objects may tell an address, which differs between processes.
    """
    if isinstance(value, (list, tuple)):
        return repr(value) if all(isinstance(element, PLAIN) for element in value) else None
    if isinstance(value, PLAIN):
        return repr(value)
    return _field_as_text(value) if _is_frozen_dataclass(value) else None


def _field_as_text(value: Any) -> str:
    """The value of a dataclass's field.

    A function is its qualified name. An object without a text of its own is the name of its type.
    """
    if value is None or isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, torch.Tensor):
        return digest(value)
    if hasattr(value, "__qualname__"):
        return _qualified_name(value)
    parts: list[Any] = []
    if isinstance(value, (list, tuple)):
        parts += value
    elif isinstance(value, Mapping):
        parts += value.items()
    elif isinstance(value, partial):
        parts += [value.func, value.args, value.keywords]
    elif _is_frozen_dataclass(value):
        parts += [(spec.name, getattr(value, spec.name)) for spec in fields(value)]
    return f"{_qualified_name(type(value))}({', '.join(map(_field_as_text, parts))})"


def _is_frozen_dataclass(value: Any) -> bool:
    parameters: Any = getattr(type(value), "__dataclass_params__", None)
    return parameters is not None and parameters.frozen


def _qualified_name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def digest(content: torch.Tensor | bytes) -> str:
    """16 hexadecimal digits of the SHA-256 of bytes, or of a tensor with its dtype and shape."""
    sha256 = hashlib.sha256()
    if isinstance(content, torch.Tensor):
        sha256.update(f"{content.dtype}{tuple(content.shape)}".encode())
        flat = content.detach().cpu().contiguous().flatten()
        content = flat.view(torch.uint8).numpy().tobytes()
    sha256.update(content)
    return sha256.hexdigest()[:16]
