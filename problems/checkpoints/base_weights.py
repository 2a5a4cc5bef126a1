"""The weights of the base as they were before any merge.

Where the base was loaded from a folder, its files hold them: mapped, without a copy in memory, and
in the dtype of the file, which may be finer than that of the loaded base. Elsewhere a weight is
copied before the first merge changes it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.adapters.same_base import hub_id
from evox_evogm.problems.checkpoints.checkpoint_files import CheckpointFiles, holds_same
from evox_evogm.problems.inference.find_base import revision_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BaseWeights:
    """The weights of a base by the names that transformers gives them.

    :param model: the base. Its weights are those that merges begin from.
    """

    def __init__(self, model: "PreTrainedModel"):
        self.model = model
        self.parameters = dict(model.named_parameters())  # of shared ones the first name
        self.kept: dict[str, torch.Tensor] = {}
        self._files = files_of_base(model)
        self._mapped: dict[str, torch.Tensor | None] = {}

    def mapped(self, name: str) -> torch.Tensor | None:
        """The tensor in the base's file, if it gives the loaded weight when it is rounded."""
        if name not in self._mapped:
            self._mapped[name] = self._find_mapped(name)
        return self._mapped[name]

    def _find_mapped(self, name: str) -> torch.Tensor | None:
        if self._files is None:
            return None
        for stored in (name, without_prefix(name, self.model)):
            if stored in self._files.stored:
                found = self._files.tensor(stored)
                if found.is_floating_point() and holds_same(self.parameters[name], found):
                    return found
        return None

    def current(self, name: str) -> torch.Tensor:
        """A weight of the base, as exact as it can be had. Not for after a merge."""
        found = self.mapped(name)
        return self.parameters[name].detach() if found is None else found

    def keep(self, name: str) -> None:
        """Keep a weight, because merges change it. Copied unless it is in the base's file."""
        if name not in self.kept:
            found = self.mapped(name)
            own = self.parameters[name].detach()
            self.kept[name] = own.to("cpu", copy=True) if found is None else found

    def bytes_to_copy(self, names) -> int:
        """The memory that keeping these weights takes beside those that are kept already."""
        size = 0
        for name in names:
            if name not in self.kept and self.mapped(name) is None:
                size += self.parameters[name].nbytes
        return size


def without_prefix(name: str, model: "PreTrainedModel") -> str:
    """The name of a weight without that of the decoder, as some files have it."""
    return name.removeprefix(f"{model.base_model_prefix}.")


def files_of_base(model: "PreTrainedModel") -> CheckpointFiles | None:
    """The files that a base was loaded from, or None where they are not known."""
    source = str(getattr(model.config, "_name_or_path", "") or "")
    folder = Path(source) if source else None
    if folder is None or not folder.is_dir():
        folder = _snapshot(source, revision_of(source, model))
    if folder is None:
        return None
    try:
        return CheckpointFiles(folder, "base")
    except ValueError:  # it was loaded, so its weights are in memory
        return None


def _snapshot(source: str, revision: str | None) -> Path | None:
    """The folder of a hub id in the local cache, or None.

    :param revision: that was loaded; None for the main branch.
    """
    from huggingface_hub import snapshot_download

    if hub_id(source) is None:
        return None
    try:
        patterns = ["*.safetensors", "*.safetensors.index.json"]
        return Path(
            snapshot_download(
                source, revision=revision, allow_patterns=patterns, local_files_only=True
            )
        )
    except Exception:  # the library has errors of its own for what is not in the cache
        return None
