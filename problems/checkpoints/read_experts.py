"""Read the experts of a problem: adapters, and whole models."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from evox_evogm.problems.adapters.check_fit import check_together
from evox_evogm.problems.adapters.find_adapters import find_adapter, name_of_source
from evox_evogm.problems.adapters.hub_source import parse_hub_source
from evox_evogm.problems.adapters.read_adapter import Expert, describe, read_expert
from evox_evogm.problems.adapters.trainer_folders import adapter_in
from evox_evogm.problems.checkpoints.checkpoint_files import is_checkpoint
from evox_evogm.problems.checkpoints.full_checkpoint import read_checkpoint


def read_experts(experts: Sequence | Mapping, *, heads: Collection[str] = ()) -> list[Expert]:
    """Read experts that can be merged.

    :param experts: a list of what `read_any_expert` takes, or a mapping of names to it.
    :param heads: see `read_expert`.
    :raises ValueError: one sentence saying which expert, what was found and what to do.
    """
    if isinstance(experts, (str, Path)):
        raise ValueError(
            f"experts: expected a list of adapter folders or a table of names and folders, "
            f"found {str(experts)!r}; give sorted(Path({str(experts)!r}).iterdir())"
        )
    if isinstance(experts, Mapping):
        found = []
        for name, folder in experts.items():
            found.append(read_any_expert(folder, name=name, heads=heads))
    else:
        found = [read_any_expert(folder, heads=heads) for folder in experts]
    check_together(found)
    return found


def read_any_expert(source, *, name: str | None = None, heads: Collection[str] = ()) -> Expert:
    """Read an adapter or a whole model.

    :param source: the folder or hub id of a whole model, the folder of its checkpoints, of which
        the last is taken, or what `read_expert` takes.
    :param name: of the expert. Defaults to the folder's name.
    :param heads: see `read_expert`.
    :raises ValueError: one sentence saying which expert, what was found and what to do.
    """
    if isinstance(source, str) and parse_hub_source(source) is not None:
        name = name or name_of_source(source)
        source = find_adapter(source, describe(name, source))
    if isinstance(source, (str, Path)):
        folder = adapter_in(Path(source))
        if is_checkpoint(folder):
            return read_checkpoint(folder, name=name or Path(source).name)
    return read_expert(source, name=name, heads=heads)
