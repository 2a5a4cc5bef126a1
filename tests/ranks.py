"""Ranks of `torch.distributed` that are forked from the test's process, in about a second.

`torchrun` starts fresh processes, each of which imports everything first.
"""

import multiprocessing
import queue
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist


def on_ranks(count, function, *arguments, seconds=60):
    """Call a function on every rank of a group.

    :param count: how many ranks.
    :param function: must not differentiate, which torch forbids in a fork under some conditions.
    :param seconds: to wait for each; ranks that are left then are killed.
    :return: per rank what the function returned, or its error as text.
    """
    context = multiprocessing.get_context("fork")
    findings = context.Queue()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in range(count):
            place = (Path(folder) / "group", rank, count)
            process = context.Process(target=run_rank, args=(place, findings, function, arguments))
            process.start()
            processes.append(process)
        try:
            for _ in processes:
                rank, outcome = findings.get(timeout=seconds)
                found[rank] = outcome
        except queue.Empty:
            for process in processes:
                process.kill()
            raise
        finally:
            for process in processes:
                process.join()
    return [found[rank] for rank in range(count)]


def run_rank(place, findings, function, arguments):
    """The life of one rank.

    :param place: the file where the ranks meet, the rank, and how many there are.
    """
    path, rank, count = place
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=count)
    findings.put((rank, outcome_of(function, arguments)))
    dist.barrier()  # a rank that leaves early looks like one that has died
    dist.destroy_process_group()


def outcome_of(function, arguments):
    """What a function returned, or its error as text."""
    try:
        return function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
