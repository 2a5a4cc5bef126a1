"""Random adapters: the names and norms of the given ones, and other numbers."""

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.suites.random_experts import write_random


def test_they_have_the_names_and_norms_of_the_experts_and_other_numbers(tmp_path, make_adapter):
    experts = make_adapter("first", seed=1).parent
    make_adapter("second", seed=2)
    write_random(experts, tmp_path / "random")
    for name in ("first", "second"):
        given = load_file(experts / name / "adapter_model.safetensors")
        made = load_file(tmp_path / "random" / name / "adapter_model.safetensors")
        assert made.keys() == given.keys()
        for key, tensor in given.items():
            assert torch.isclose(made[key].norm(), tensor.norm()) and not made[key].equal(tensor)
    with pytest.raises(FileExistsError):
        write_random(experts, tmp_path / "random")
