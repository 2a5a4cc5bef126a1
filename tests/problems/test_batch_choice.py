"""Sizes of batches and memory that a problem chooses: scores do not depend on them."""

import logging

import psutil
import pytest
import torch
import torch.distributed as dist
from builders import build_model, two_adapters

from evox_evogm.command.batch_settings import check_max_memory
from evox_evogm.problems import Example, LoRAMergeProblem, Task, batch_choice, lora_merge
from evox_evogm.problems.inference import free_memory
from evox_evogm.problems.inference.batch_sizes import BatchSizes
from evox_evogm.problems.inference.free_memory import free_in_machine, limit_of_memory
from evox_evogm.problems.lora_merge import merges_at_once

pytestmark = pytest.mark.language_model

SUMS = tuple(Example(f"sum {i}", f"{i} + {i * i} =", str(i + i * i)) for i in range(5))
TASKS = [
    Task("gold", "1", "gold_log_probability", SUMS),
    Task("generated", "1", "exact_match", SUMS, match="contains", max_new_tokens=5),
]
POP = torch.tensor([[0.5, 0.5], [1.0, -0.5], [0.0, 0.3]])


@pytest.fixture
def make_problem(make_adapter, tokenizer):
    folders = two_adapters("llama", make_adapter)

    def make(**settings):
        return LoRAMergeProblem(build_model(), folders, TASKS, tokenizer=tokenizer, **settings)

    return make


@pytest.mark.parametrize("mode", ["unmerged", "merged"])
def test_scores_are_the_same_whatever_the_sizes(make_problem, mode):
    expected = make_problem(mode=mode).score_together(POP)
    for sizes in (BatchSizes(20, 7, 5, 9), BatchSizes(10**6, 1000, 0, 10**6)):
        found = make_problem(mode=mode, batch_tokens=sizes).score_together(POP)
        for name, scores in expected.items():
            torch.testing.assert_close(found[name], scores, rtol=1e-5, atol=1e-5)


def test_sizes_are_measured_once_before_the_first_scores(make_problem, monkeypatch, caplog):
    found, passes = BatchSizes(64, 40, 3, 2), []

    def measure(model, *, candidates=1):
        passes.append(candidates)
        return found

    monkeypatch.setattr(batch_choice, "measure_batch_sizes", measure)
    problem = make_problem(batch_tokens="auto", mode="unmerged")
    assert problem.batch_sizes == BatchSizes() and passes == []
    with caplog.at_level(logging.INFO, "evox_evogm.problems.batch_choice"):
        problem.evaluate(POP)
    problem.score_together(POP)
    assert problem.batch_sizes == found and passes == [2]
    words = "64 tokens of prompts in a pass, 40 rows in a step; beside these a pass costs 3 tokens"
    assert words in caplog.text


def test_more_merges_are_scored_together_where_larger_batches_were_measured():
    """Of 200 prompt tokens and 10 examples."""
    assert merges_at_once(TASKS, 200) == 16_384 // 200
    assert merges_at_once(TASKS, 200, BatchSizes(10**6)) == 16_384 // 200
    assert merges_at_once(TASKS, 200, BatchSizes(10**6, 1)) == 8 * 10**6 // 200
    assert merges_at_once(TASKS, 200, BatchSizes(64, 5000)) == 500


def test_a_measurement_that_fails_leaves_the_constants(make_problem, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("no clock")

    monkeypatch.setattr(batch_choice, "measure_batch_sizes", fail)
    problem = make_problem(batch_tokens="auto", mode="unmerged")
    assert problem.evaluate(POP).isfinite().all() and problem.batch_sizes == BatchSizes()
    assert (
        "batches: they could not be measured (RuntimeError: no clock): 2048 tokens" in caplog.text
    )


def test_ranks_do_not_measure_batches_which_they_might_choose_differently(
    make_problem, monkeypatch, caplog, tmp_path
):
    monkeypatch.setattr(batch_choice, "measure_batch_sizes", lambda *_, **__: pytest.fail())
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        problem = make_problem(batch_tokens="auto", mode="unmerged")
        with caplog.at_level(logging.INFO, "evox_evogm.problems.batch_choice"):
            problem.choose_modes(len(POP))
    finally:
        dist.destroy_process_group()
    assert problem.batch_sizes == BatchSizes()
    assert "ranks that measured for themselves might choose differently" in caplog.text


def test_measuring_really_happens_on_request(make_problem):
    problem = make_problem(batch_tokens="auto", max_memory=2**20)
    problem.choose_modes(3)
    assert problem.batch_sizes.rows >= 4 and problem.batch_sizes.tokens >= 128


def test_memory_is_a_share_of_what_is_free(make_problem, monkeypatch):
    monkeypatch.setattr(free_memory, "free_in_machine", lambda: 2**34)
    problem = make_problem(max_memory="auto")
    assert problem.max_memory == problem.language_model.max_memory == 2**33
    assert make_problem().max_memory == 2**31
    assert make_problem(max_memory=12_345).max_memory == 12_345


def test_what_the_experts_take_is_not_free(make_problem, monkeypatch):
    """The limit of before they were put on the device holds while they are read."""
    limits = [1000, 700]
    monkeypatch.setattr(lora_merge, "limit_for_model", lambda *_: limits.pop(0))
    assert make_problem(max_memory="auto").max_memory == 700


@pytest.mark.parametrize("value", ["much", 0, -1])
def test_memory_that_is_no_amount_is_refused(make_problem, value):
    expected = 'max_memory: expected a number of bytes above 0 or "auto"'
    with pytest.raises(ValueError, match=f"^{expected}, found {value!r}$"):
        make_problem(max_memory=value)


def test_where_nothing_is_free_some_memory_is_chosen_that_settings_accept(monkeypatch):
    monkeypatch.setattr(free_memory, "free_in_machine", lambda: 0)
    chosen = limit_of_memory("auto", torch.device("cpu"))
    assert chosen == 64 * 2**20
    check_max_memory(chosen / 2**30)  # as `config.yaml` holds it


@pytest.mark.parametrize("value", ["many", 0])
def test_batches_that_have_no_size_are_refused(make_problem, value):
    with pytest.raises(ValueError, match=f"^batch_tokens: expected tokens .*, found {value!r}$"):
        make_problem(batch_tokens=value)


@pytest.mark.parametrize(
    ("most", "used", "cached", "free"),
    [
        ("max", "100", 0, 900),
        ("500", "100", 0, 400),
        ("500", "450", 350, 400),  # what was read of files is given up
        ("100", "300", 0, 0),
        (None, None, 0, 900),
    ],
)
def test_a_container_has_no_more_than_its_limit(tmp_path, monkeypatch, most, used, cached, free):
    class Machine:
        available = 900

    monkeypatch.setattr(psutil, "virtual_memory", Machine)
    if most is not None:
        (tmp_path / "memory.max").write_text(f"{most}\n")
        (tmp_path / "memory.current").write_text(f"{used}\n")
    if cached:
        stat = f"anon {used}\nactive_file 7\ninactive_file {cached}\nslab 3\n"
        (tmp_path / "memory.stat").write_text(stat)
    assert free_in_machine(tmp_path) == free


def test_on_a_gpu_free_is_what_nobody_has_and_what_torch_keeps_unused(monkeypatch):
    mib = 2**20
    numbers = {"mem_get_info": (600 * mib, 1000 * mib)}
    numbers |= {"memory_reserved": 300 * mib, "memory_allocated": 200 * mib}
    for name, value in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    device = torch.device("cuda")
    assert limit_of_memory(None, device) == limit_of_memory("auto", device) == 560 * mib
    assert limit_of_memory(123, device) == 123
