"""The adapters that words of the command line name: folders, folders of folders, and hub ids."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evox_evogm.problems.adapters.find_adapters import (
    find_adapter,
    find_adapters,
    holds_adapter,
    name_of_source,
)
from evox_evogm.problems.adapters.hub_source import (
    HubSource,
    name_like,
    parse_hub_source,
    source_of_folder,
)
from evox_evogm.problems.adapters.read_adapter import CONFIG
from evox_evogm.problems.adapters.trainer_folders import (
    adapter_in,
    last_checkpoint,
    list_adapters,
)
from evox_evogm.problems.checkpoints.checkpoint_files import is_checkpoint
from evox_evogm.problems.inference.find_base import base_beside, has_model


@dataclass(frozen=True)
class NamedAdapter:
    """An adapter as a user named it.

    :param folder: where it is read.
    :param path: what names it, a path or a hub id without revision. Its last part is its name.
    :param hub: its hub id, at the revision that the user gave; None of a folder.
    """

    folder: Path
    path: Path
    hub: str | None = None


def named_adapters(words: Sequence[str]) -> list[NamedAdapter]:
    """The adapters and whole models that words name, each once.

    :param words: adapters, output folders of trainers, folders of these, and hub ids.
    :raises ValueError: if the hub does not have one, or there is none.
    """
    found: dict[Path, NamedAdapter] = {}
    for word in words:
        source = parse_hub_source(word)
        named = _in_folder(Path(word)) if source is None else _on_hub(word, source)
        for adapter in named:
            found.setdefault(adapter.folder, adapter)
    # Other files beside them, as `experts/*` names them too, are passed over.
    adapters = [adapter for folder, adapter in found.items() if not folder.is_file()]
    if not adapters:
        expected = f"expected adapter folders with {CONFIG}"
        raise ValueError(f"adapters: {expected}, found none in {', '.join(map(str, words))}")
    return adapters


def base_of_words(words: Sequence[str]) -> str | None:
    """The base that lies beside the adapters, in the one folder or repository that words name."""
    if len(words) != 1:
        return None
    base = base_beside(words[0], Path())
    if base is None or parse_hub_source(base) is None:
        return base
    return base if has_model(base) else None


def _in_folder(folder: Path) -> list[NamedAdapter]:
    single = (folder / CONFIG).is_file() or not folder.is_dir() or is_checkpoint(folder)
    if single or last_checkpoint(folder) is not None:
        return [NamedAdapter(adapter_in(folder), folder)]
    found = []
    for child, adapter in list_adapters(folder).items():
        found.append(NamedAdapter(adapter, child))
    return found


def _on_hub(word: str, source: HubSource) -> list[NamedAdapter]:
    where = f"adapters {word}"
    if holds_adapter(word, where):
        return [_named_on_hub(name_of_source(word), find_adapter(word, where), word, source)]
    found = []
    for name, folder in find_adapters(word).items():
        found.append(_named_on_hub(name, folder, word, source))
    return found


def _named_on_hub(name: str, folder: Path, word: str, source: HubSource) -> NamedAdapter:
    exact = source_of_folder(folder)
    hub = source if exact is None else replace(source, folder=exact.folder)
    return NamedAdapter(folder, Path(source.repository) / name, name_like(hub, word))
