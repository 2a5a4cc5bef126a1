"""How much memory evaluation may take where nobody says it: a share of what is free."""

from pathlib import Path

import torch

LEAST_MEMORY = 2**26  # of a pass over one row, which is made however little is free
MAX_MEMORY = 2 * 2**30  # where a device does not say what is free, and on a CPU by default
SHARE_OF_DEVICE = 0.8  # other tensors and fragmentation have the rest
SHARE_OF_MACHINE = 0.5  # other programs have the rest
# Of the control group of this process, as containers have them.
GROUP = Path("/sys/fs/cgroup")


def limit_of_memory(max_memory: int | str | None, device: torch.device) -> int:
    """Bytes that evaluation may take, by the argument `max_memory` of `LoRAMergeProblem`.

    :raises ValueError: if it is neither a number above 0 nor "auto".
    """
    if max_memory == "auto" or (max_memory is None and device.type != "cpu"):
        return memory_to_use(device)
    if max_memory is None:
        return MAX_MEMORY
    if isinstance(max_memory, str) or max_memory <= 0:
        expected = 'expected a number of bytes above 0 or "auto"'
        raise ValueError(f"max_memory: {expected}, found {max_memory!r}")
    return max_memory


def limit_for_model(max_memory: int | str | None, model: torch.nn.Module) -> int:
    """Bytes that evaluation may take on each device of a model, see `limit_of_memory`."""
    devices = {parameter.device for parameter in model.parameters()}
    return min(limit_of_memory(max_memory, device) for device in devices)


def memory_to_use(device: torch.device) -> int:
    """Bytes that evaluation may take: a share of what is free on a device, at least some."""
    if device.type == "cpu":
        return max(LEAST_MEMORY, int(SHARE_OF_MACHINE * free_in_machine()))
    free = free_on_device(device)
    return MAX_MEMORY if free is None else max(LEAST_MEMORY, int(SHARE_OF_DEVICE * free))


def free_on_device(device: torch.device) -> int | None:
    """Bytes that torch can still give to tensors on an accelerator; None if it does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    find = getattr(torch.accelerator, "get_memory_info", None)  # new in torch 2.9
    if find is None:
        return None
    try:
        free, _ = find(device)
    except (RuntimeError, ValueError):  # not every backend can say it
        return None
    return free


def free_in_machine(group: Path = GROUP) -> int:
    """Bytes of RAM that are free, for this machine or this container.

    :param group: the folder of the control group.
    """
    import psutil

    free = psutil.virtual_memory().available
    most, used = _number_in(group / "memory.max"), _number_in(group / "memory.current")
    if most is not None and used is not None:
        # Of files that were read, which the system keeps as long as nothing else needs the memory.
        used = max(0, used - _inactive_files(group / "memory.stat"))
        free = min(free, max(0, most - used))
    return free


def _inactive_files(stat: Path) -> int:
    """Bytes of the page cache of a control group that are given up first; 0 if that is not said."""
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        name, _, number = line.partition(" ")
        if name == "inactive_file" and number.isdecimal():
            return int(number)
    return 0


def _number_in(path: Path) -> int | None:
    """The number in a file, or None where there is none."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
