"""The head of a task: the linear layer that turns pooled features of an image into class logits.

Heads are not merged. Every task keeps its own, as it was trained beside the expert, or made from
texts as CLIP's are.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from evox_evogm.problems.adapters.adapter_config import WEIGHTS
from evox_evogm.problems.adapters.tensor_names import PREFIX

CLASSIFIER = "classifier"  # what transformers calls the head of an image model
HEADS = (CLASSIFIER,)  # what adapters of image models may hold whole
FILES = (WEIGHTS, "model.safetensors")  # where a folder may have one
# What its tensors may be called: alone, in a whole model, and in an adapter that saved it whole.
PREFIXES = ("", f"{CLASSIFIER}.", f"{PREFIX}{CLASSIFIER}.")


@dataclass(frozen=True, eq=False)
class Head:
    """A linear layer.

    :param weight: a `(K, D)` tensor, a row for each class.
    :param bias: a `(K,)` tensor.
    :param source: the file or folder that it was read from; None if it was given.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    source: Path | None = None

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits `(N, K)` of features `(N, D)`, in float32 at least."""
        precision = torch.promote_types(features.dtype, torch.float32)
        weight = self.weight.to(features.device, precision)
        bias = self.bias.to(features.device, precision)
        return torch.nn.functional.linear(features.to(precision), weight, bias)


def read_head(source) -> Head:
    """The head of a task.

    :param source: one of

        - a `Head`, or a `torch.nn.Linear`, which is copied;
        - a `(K, D)` tensor, a head without bias, such as the text embeddings of CLIP's classes;
        - a file in safetensors format with `weight` and `bias`, or `classifier.weight` and
          `classifier.bias`. The bias may be missing;
        - a folder with such a file: an adapter that was trained with
          `modules_to_save=["classifier"]`, or a whole model.
    :raises ValueError: in one sentence, if there is none.
    """
    if isinstance(source, Head):
        return source
    if isinstance(source, torch.nn.Linear):
        return _head(source.weight, source.bias, "the layer")
    if isinstance(source, torch.Tensor):
        return _head(source, None, "the tensor")
    if isinstance(source, (str, Path)):
        return _read_file(Path(source))
    raise ValueError(
        "head: expected a linear layer, a tensor, or a file or folder with one, "
        f"found {type(source).__name__}"
    )


def _read_file(path: Path) -> Head:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = [path / name for name in FILES] if path.is_dir() else [path]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        names = " or ".join(FILES)
        raise ValueError(f"head: expected a file, or a folder with {names}, found none at {path}")
    try:
        tensors = load_file(found)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"head: expected a file in safetensors format, found {found}: {error}"
        ) from error
    for prefix in PREFIXES:
        if f"{prefix}weight" in tensors:
            weight, bias = tensors[f"{prefix}weight"], tensors.get(f"{prefix}bias")
            return replace(_head(weight, bias, str(found)), source=path)
    raise ValueError(
        f"head: expected a tensor 'weight' or '{CLASSIFIER}.weight' in {found}, found none; "
        f'train the adapter with modules_to_save=["{CLASSIFIER}"], or save the layer as a file'
    )


def _head(weight: torch.Tensor, bias: torch.Tensor | None, where: str) -> Head:
    """A head of copies in float32.

    :param where: it comes from, as the error names it.
    """
    if weight.ndim != 2 or len(weight) < 2:
        raise ValueError(
            f"head: expected a matrix with a row for each of at least two classes in {where}, "
            f"found the shape {tuple(weight.shape)}"
        )
    if bias is None:
        bias = weight.new_zeros(len(weight))
    if bias.shape != weight.shape[:1]:
        raise ValueError(
            f"head: expected a bias for each of {len(weight)} classes in {where}, "
            f"found the shape {tuple(bias.shape)}"
        )
    head = Head(weight.detach().float().clone(), bias.detach().float().clone())
    if not (head.weight.isfinite().all() and head.bias.isfinite().all()):
        raise ValueError(f"head: expected finite numbers in {where}, found others")
    return head
