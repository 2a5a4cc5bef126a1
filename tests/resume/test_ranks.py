"""What rank 0 reads, and what goes wrong there, reaches every rank."""

import pytest
import torch.distributed as dist
from ranks import on_ranks

from evox_evogm.resume.ranks import read_on_rank_0


def fail():
    raise ValueError("state.safetensors: expected the state of this workflow")


def on_rank(backend):
    made = []
    make = dist.new_group
    dist.new_group = lambda **options: made.append(options["backend"]) or make(**options)
    if backend == "nccl":  # said of a group that is one of gloo
        dist.get_backend_config = lambda group: "cuda:nccl"
    rank = dist.get_rank()
    first = read_on_rank_0(lambda: {"from": rank})
    second = read_on_rank_0(lambda: rank)
    try:
        read_on_rank_0(fail)
    except ValueError as error:
        return first, second, str(error), made
    return None


@pytest.mark.lengthy
@pytest.mark.parametrize(("backend", "made"), [("gloo", []), ("nccl", ["gloo"])])
def test_all_ranks_get_what_rank_0_reads_and_its_errors(backend, made):
    message = "state.safetensors: expected the state of this workflow"
    assert on_ranks(2, on_rank, backend) == [({"from": 0}, 0, message, made)] * 2


def test_without_a_group_the_function_is_called_here():
    assert read_on_rank_0(lambda: 3) == 3
    with pytest.raises(ValueError, match="expected the state"):
        read_on_rank_0(fail)
