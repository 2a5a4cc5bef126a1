"""Everything on a pretend accelerator beside the CPU: tensors that are left on the CPU are errors.

The arithmetic is the CPU's, so that what is found is what the CPU finds.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from builders import build_model, history, two_adapters
from evox.algorithms import PSO
from evox.problems.numerical import Ackley
from evox.workflows import EvalMonitor, StdWorkflow
from pretend_device import pretend_accelerator
from safetensors.torch import load_file

from evox_evogm import EvoGM, ResumableSearch, SurrogateEvoGM
from evox_evogm.problems import Example, LoRAMergeProblem, Racing, Task

CPU = torch.device("cpu")
CHOICES = (("A", "yes"), ("B", "no"))
ROWS = tuple(Example(f"row {i}", f"{i} + {i} =", "AB"[i % 2], CHOICES) for i in range(4))
SUMS = tuple(Example(f"sum {i}", f"{i} + {i} =", str(2 * i)) for i in range(8))
TASKS = [
    Task("choices", "1", "choice_likelihood", ROWS),
    Task("gold", "1", "gold_log_probability", SUMS),
    Task("exact", "1", "exact_match", SUMS[:3], max_new_tokens=4),
    Task("generated", "1", "multiple_choice_generation", ROWS, max_new_tokens=4),
]
POP = torch.tensor([[0.5, 0.5], [1.0, -0.5], [0.0, 0.3]])


@pytest.fixture
def pretend():
    with pretend_accelerator() as device:
        yield device


@pytest.mark.parametrize(
    "mix",
    [
        lambda ours: ours + torch.ones(2),
        lambda ours: torch.ones(2) + ours.sum(),
        lambda ours: torch.stack([ours.sum(), torch.tensor(1.0)]),
        lambda ours: torch.ones(2)[ours.long()],
        lambda ours: torch.rand(2, device=ours.device, generator=torch.Generator()),
    ],
)
def test_what_mixes_devices_fails(pretend, mix):
    with pytest.raises(RuntimeError, match="Expected "):
        mix(torch.ones(2, device=pretend))


def test_a_tensor_of_the_device_is_no_array(pretend):
    with pytest.raises(TypeError, match="can't convert"):
        torch.ones(2, device=pretend).numpy()


def test_what_may_mix_devices_works(pretend):
    ours = torch.ones(2, device=pretend)
    assert (ours + torch.tensor(1.0)).tolist() == [2.0, 2.0]
    assert ours[torch.tensor([1])].tolist() == [1.0]
    ours.data = torch.zeros(2, device=pretend)
    assert ours.cpu().tolist() == [0.0, 0.0]


def evogm(device, n=2):
    bounds = torch.ones(n, device=device)
    return EvoGM(4, -bounds, bounds, n_iters=1, epochs=3, hidden_dims=(8,), device=device)


def surrogate_evogm(device, n=2):
    bounds = torch.ones(n, device=device)
    return SurrogateEvoGM(3, -bounds, bounds, device=device)


def search(make, problem, device, steps=4, **settings):
    """Run a search.

    :return: the fitness of all steps, and the device of the last points.
    """
    torch.manual_seed(5)
    monitor = EvalMonitor(full_fit_history=True, device=device)
    workflow = StdWorkflow(make(device), problem, monitor, device=device, **settings)
    workflow.init_step()
    for _ in range(steps - 1):
        workflow.step()
    best = monitor.get_best_solution()
    return torch.cat([fitness.cpu() for fitness in monitor.fitness_history]), best.device


@pytest.mark.parametrize("make", [evogm, surrogate_evogm])
def test_a_search_finds_on_the_device_what_it_finds_on_the_cpu(pretend, make):
    expected, _ = search(make, Ackley(), CPU)
    found, device = search(make, Ackley(), pretend)
    assert device == pretend
    torch.testing.assert_close(found, expected)


def make_problem(architecture, make_adapter, tokenizer, device, dtype=torch.float32, **settings):
    settings = {"tasks": TASKS, "mode": "unmerged", **settings}
    tasks = settings.pop("tasks")
    model = build_model(architecture).to(device, dtype)
    model.set_attn_implementation("eager")  # the fused kernels of the CPU round otherwise
    folders = two_adapters(architecture, make_adapter)
    return LoRAMergeProblem(model, folders, tasks, tokenizer=tokenizer, **settings)


@pytest.fixture
def both(make_adapter, tokenizer, pretend):
    """A function that makes a problem on the CPU and the same on the device."""

    def make(architecture="llama", **settings):
        problems = []
        for device in (CPU, pretend):
            problem = make_problem(architecture, make_adapter, tokenizer, device, **settings)
            problems.append(problem)
        return problems

    return make


def check_same_scores(problems, pretend, pop=POP):
    """The problem of the device scores as that of the CPU, by task and example."""
    expected = problems[0].evaluate(pop)
    found = problems[1].evaluate(pop.to(pretend))
    assert found.device == pretend
    torch.testing.assert_close(found.cpu(), expected, equal_nan=True)
    by_task = problems[0].score_together(pop)
    for name, scores in problems[1].score_together(pop.to(pretend)).items():
        torch.testing.assert_close(scores, by_task[name])


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)],
    ids=["float32", "bfloat16"],
)
@pytest.mark.parametrize("mode", ["unmerged", "merged"])
@pytest.mark.parametrize("architecture", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_merges_score_on_the_device_as_on_the_cpu(both, pretend, architecture, mode, dtype):
    problems = both(architecture, mode=mode, dtype=dtype, objectives="outcomes")
    check_same_scores(problems, pretend)


def test_the_mode_is_chosen_on_the_device(both, pretend):
    problem = both(mode="auto", tasks=TASKS[:2])[1]
    assert problem.evaluate(POP.to(pretend)).isfinite().all()
    assert set(problem.modes) == {"choices", "gold"}


def test_regmean_on_the_device(both, pretend):
    regmean = {"llama0": TASKS[:1], "llama1": TASKS[1:2]}
    check_same_scores(both(regmean=regmean, tasks=TASKS[:2]), pretend)


def test_racing_on_the_device(both, pretend):
    check = both(racing=Racing((0.3, 0.6), 0.5), tasks=TASKS[:2])
    for problem, device in zip(check, (CPU, pretend), strict=True):
        problem.evaluate(POP.to(device))
        problem.evaluate((-2 * POP).to(device))
    assert check[1].budget_used == check[0].budget_used


@pytest.mark.parametrize("make", [pytest.param(evogm, marks=pytest.mark.slow), surrogate_evogm])
def test_a_search_of_merges_that_is_cut_off_goes_on_on_the_device(both, pretend, tmp_path, make):
    def run_search(folder, *steps):
        for count in steps:
            problem = both(tasks=TASKS[1:2])[1]
            torch.manual_seed(5)
            workflow = StdWorkflow(make(pretend), problem, opt_direction="max", device=pretend)
            with ResumableSearch(workflow, folder) as run:
                run.run(count)

    run_search(tmp_path / "whole", 3)
    run_search(tmp_path / "cut", 2, 3)
    assert history(tmp_path / "cut") == history(tmp_path / "whole")


def test_another_algorithm_goes_on_on_the_device(pretend, tmp_path):
    def run_search(folder, *steps):
        for count in steps:
            torch.manual_seed(5)
            bounds = torch.ones(2, device=pretend)
            algorithm = PSO(3, -bounds, bounds, device=pretend)
            monitor = EvalMonitor(device=pretend)
            workflow = StdWorkflow(algorithm, Ackley(), monitor, device=pretend)
            with ResumableSearch(workflow, folder) as run:
                run.run(count)

    run_search(tmp_path / "whole", 4)
    run_search(tmp_path / "cut", 2, 4)
    assert history(tmp_path / "cut") == history(tmp_path / "whole")


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_merge_is_exported_from_the_device_and_reloaded(both, pretend, tmp_path, architecture):
    on_cpu, on_device = both(architecture, tasks=TASKS[:2])
    expected = on_cpu.export(POP[0], tmp_path / "of the cpu")
    found = on_device.export(POP[0].to(pretend), tmp_path / "of the device")
    assert found == pytest.approx(expected, abs=1e-6)
    first = load_file(tmp_path / "of the cpu" / "adapter_model.safetensors")
    second = load_file(tmp_path / "of the device" / "adapter_model.safetensors")
    assert first.keys() == second.keys()
    for name, values in first.items():
        torch.testing.assert_close(second[name], values)


def on_two_devices(pretend, tmp_path):
    """As transformers loads a base with `device_map="auto"` on two GPUs."""
    model = build_model()
    for module in (model.model.layers[1], model.model.norm, model.lm_head):
        module.to(pretend)
    model.hf_device_map = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "lm_head": 0}
    return model


def with_a_buffer_elsewhere(pretend, tmp_path):
    model = build_model()
    model.model.rotary_emb.to(pretend)
    return model


def offloaded_to_memory(pretend, tmp_path):
    from accelerate import cpu_offload

    model = build_model()
    cpu_offload(model, CPU)
    return model


def offloaded_to_disk(pretend, tmp_path):
    from accelerate import disk_offload

    model = build_model()
    disk_offload(model, tmp_path / "offloaded", CPU)
    return model


def offloaded_in_part(pretend, tmp_path):
    from accelerate import dispatch_model

    device_map = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    device_map |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    return dispatch_model(build_model(), device_map, "cpu", offload_dir=tmp_path / "offloaded")


ONE_DEVICE = (
    "^base: expected all weights on one device, found them on cpu, pretend:0; "
    "load it on one, or with a device_map of transformers, whose hooks move what layers read$"
)
IN_MEMORY = (
    "^base: expected all weights in memory, found some offloaded to the CPU or disk; "
    "load it without device_map, with another dtype or quantized if it is too large$"
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (on_two_devices, ONE_DEVICE),
        (with_a_buffer_elsewhere, ONE_DEVICE),
        (offloaded_to_memory, IN_MEMORY),
        (offloaded_to_disk, IN_MEMORY),
        (offloaded_in_part, IN_MEMORY),
    ],
)
@pytest.mark.parametrize("device", [None, CPU])
def test_a_base_that_is_not_on_one_device_is_refused_with_what_to_do(
    make_adapter, tokenizer, pretend, tmp_path, make, message, device
):
    folder, base = make_adapter("one"), make(pretend, tmp_path)
    with pytest.raises(ValueError, match=message):
        LoRAMergeProblem(base, [folder], TASKS[1:2], tokenizer=tokenizer, device=device)


def test_a_base_that_accelerate_put_on_one_device_is_taken(make_adapter, tokenizer):
    from accelerate import dispatch_model

    folder = make_adapter("one")
    scores = []
    for base in (build_model(), dispatch_model(build_model(), {"": "cpu"}, force_hooks=True)):
        problem = LoRAMergeProblem(base, [folder], TASKS[1:2], tokenizer=tokenizer)
        scores.append(problem.evaluate(torch.ones(1, 1)))
    torch.testing.assert_close(scores[1], scores[0])


def spread(model, first, second):
    """A model in two parts on two devices, with the hooks that accelerate gives each part."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    parts = {first: [model.model.embed_tokens, model.model.rotary_emb, model.model.layers[0]]}
    parts[second] = [model.model.layers[1], model.model.norm, model.lm_head]
    for device, modules in parts.items():
        for module in modules:
            add_hook_to_module(module.to(device), AlignDevicesHook(execution_device=device))
    add_hook_to_module(model, AlignDevicesHook(execution_device=first, io_same_device=True))
    return model


ALL_LINEAR = {"target_modules": ["q_proj", "v_proj", "down_proj", "lm_head"]}


@pytest.mark.slow
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("settings", [{"mode": "unmerged"}, {"mode": "merged"}])
def test_a_base_in_parts_on_two_devices_scores_as_on_one(
    make_adapter, tokenizer, settings, swapped
):
    check_parts_on_two_devices(two_experts(make_adapter), tokenizer, settings, swapped)


@pytest.mark.slow
@pytest.mark.parametrize("swapped", [False, True])
def test_a_base_in_parts_on_two_devices_has_the_gradients_of_one(make_adapter, tokenizer, swapped):
    """In a process of its own: torch counts devices at the first backward pass of a process."""
    settings = {"objectives": "gradients", "tasks": TASKS[:2]}
    arguments = two_experts(make_adapter), tokenizer, settings, swapped
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(check_parts_on_two_devices, *arguments).result()


def two_experts(make_adapter):
    return [make_adapter("first", seed=1, **ALL_LINEAR), make_adapter("second", seed=2)]


def check_parts_on_two_devices(folders, tokenizer, settings, swapped):
    """Score a population with a base on one device and with one on two."""
    with pretend_accelerator() as pretend:
        first, second = (pretend, CPU) if swapped else (CPU, pretend)
        found = []
        for base in (build_model(), spread(build_model(), first, second)):
            base.set_attn_implementation("eager")
            options = {"objectives": "outcomes", "tasks": TASKS, **settings}
            problem = LoRAMergeProblem(
                base, folders, options.pop("tasks"), tokenizer=tokenizer, **options
            )
            found.append(problem.evaluate(POP))
        torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-3)
        assert problem.language_model.device == first
        assert {module.a.device for module in problem.stacked.values()} == {first, second}
        assert problem.capabilities.notes == ()


def test_a_device_map_is_for_language_models_and_adapters(make_adapter, tokenizer):
    from evox_evogm.problems.scored_models import check_device_map

    check_device_map("auto", "org/base", [], images=False)
    with pytest.raises(
        ValueError, match="device_map: expected a language model that is loaded her"
    ):
        check_device_map("auto", build_model(), [], images=False)
    with pytest.raises(ValueError, match="found an image model; leave it out"):
        check_device_map("auto", "org/base", [], images=True)


@pytest.mark.slow
def test_a_base_is_loaded_with_a_device_map(make_adapter, tokenizer, tmp_path):
    build_model().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    folder, base = make_adapter("one"), str(tmp_path / "base")
    scores = []
    for device_map in (None, {"": "cpu"}):
        # Rates that are measured could choose another mode, which rounds differently.
        options = {"dtype": torch.float32, "device_map": device_map, "mode": "unmerged"}
        problem = LoRAMergeProblem(base, [folder], TASKS[1:2], **options)
        scores.append(problem.evaluate(torch.ones(1, 1)))
    assert scores[0] == scores[1]
