"""Adapters of mixtures of experts and of other parameters, beside what plain peft makes of them."""

import json

import pytest
import torch
from builders import build_model, build_tokenizer
from other_bases import (
    build_mixtral,
    build_qwen3_moe,
    logits_of,
    merged_logits,
    peft_logits,
)
from safetensors.torch import load_file, save_file
from sick_adapters import load_experts

from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.adapters.export import export_adapter, reload_difference
from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.adapters.read_adapter import read_expert
from evox_evogm.problems.adapters.stacked_modules import stack_experts
from evox_evogm.problems.adapters.weight_merger import WeightMerger, merged_in_place

pytestmark = pytest.mark.language_model

RANK = 2
# The names of transformers 4: where the experts stand, and their layers.
NAMES = {
    "mixtral": (build_mixtral, "block_sparse_moe", ("w1", "w3", "w2")),
    "qwen3": (build_qwen3_moe, "mlp", ("gate_proj", "up_proj", "down_proj")),
}
EXPERTS = 4
WIDTH, INNER = 16, 24  # of the residual stream, and of each expert


@pytest.fixture
def make_named_experts(tmp_path):
    """A function that writes an adapter by names of transformers 4, with a layer per expert."""

    def make(kind, folder="named", *, seed=0, left_out=(), router=False, **settings):
        _, place, layers = NAMES[kind]
        generator = torch.Generator().manual_seed(seed)
        shapes = {}
        for number in range(2):
            prefix = f"model.layers.{number}"
            shapes[f"{prefix}.self_attn.q_proj"] = (WIDTH, WIDTH)
            if router:
                shapes[f"{prefix}.{place}.gate"] = (WIDTH, EXPERTS)
            for expert in range(EXPERTS):
                for layer in layers:
                    inputs, outputs = (INNER, WIDTH) if layer == layers[2] else (WIDTH, INNER)
                    shapes[f"{prefix}.{place}.experts.{expert}.{layer}"] = (inputs, outputs)
        tensors = {}
        for name, (inputs, outputs) in shapes.items():
            if name.endswith(tuple(left_out)):
                continue
            key = f"base_model.model.{name}"
            a = torch.randn(RANK, inputs, generator=generator)
            b = torch.randn(outputs, RANK, generator=generator)
            tensors[f"{key}.lora_A.weight"] = 0.3 * a
            tensors[f"{key}.lora_B.weight"] = 0.3 * b
        path = tmp_path / "experts" / folder
        path.mkdir(parents=True)
        save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
        targets = {name.rpartition(".")[2] for name in shapes if not name.endswith(tuple(left_out))}
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": ""}
        config |= {"r": RANK, "lora_alpha": 6, "target_modules": sorted(targets), **settings}
        (path / "adapter_config.json").write_text(json.dumps(config))
        return path

    return make


@pytest.mark.parametrize("router", [False, True])
@pytest.mark.parametrize("kind", NAMES)
def test_experts_by_name_are_fused_as_peft_does(make_named_experts, kind, router):
    build = NAMES[kind][0]
    folder = make_named_experts(kind, router=router)
    expected = peft_logits(build(), folder)
    assert not torch.allclose(expected, logits_of(build()), atol=0.1)
    torch.testing.assert_close(merged_logits(build(), folder), expected, rtol=1e-3, atol=1e-4)


def test_fused_factors_are_those_of_each_expert(make_named_experts):
    folder = make_named_experts("mixtral")
    (expert,) = load_experts([folder], build_mixtral())
    tensors = load_file(folder / "adapter_model.safetensors")

    def product(number, layer):
        prefix = f"base_model.model.model.layers.1.block_sparse_moe.experts.{number}.{layer}"
        return tensors[f"{prefix}.lora_B.weight"] @ tensors[f"{prefix}.lora_A.weight"]

    gate_up = expert.modules["model.layers.1.mlp.experts.gate_up_proj"]
    down = expert.modules["model.layers.1.mlp.experts.down_proj"]
    assert gate_up.scale == down.scale == 3.0
    for number in range(EXPERTS):
        expected = torch.cat([product(number, "w1"), product(number, "w3")])
        torch.testing.assert_close(gate_up.b[number] @ gate_up.a[number], expected)
        torch.testing.assert_close(down.b[number] @ down.a[number], product(number, "w2"))


@pytest.fixture
def make_parameters(make_adapter):
    """A function that trains factors of parameters by plain peft."""

    def make(kind, name="parameters", **settings):
        base = {"r": RANK, "target_modules": ["q_proj"]}
        targets = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
        return make_adapter(name, NAMES[kind][0](), **{**base, **targets, **settings})

    return make


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_parameters": ["down_proj", "gate_up_proj", "mlp.gate.weight"]},
        {"target_parameters": ["experts.gate_up_proj"], "target_modules": []},
        {"target_parameters": ["experts.down_proj"]},
        {"rank_pattern": {"gate_up_proj": 3}, "alpha_pattern": {"1.mlp.experts.down_proj": 5}},
        {"use_rslora": True},
    ],
)
@pytest.mark.parametrize("kind", NAMES)
def test_factors_of_parameters_are_read_as_peft_reads_them(make_parameters, kind, settings):
    build = NAMES[kind][0]
    folder = make_parameters(kind, **settings)
    expected = peft_logits(build(), folder)
    torch.testing.assert_close(merged_logits(build(), folder), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "target"),
    [("llama", "v_proj.weight"), ("gpt2", "c_attn.weight"), ("llama", "embed_tokens.weight")],
)
def test_the_weight_of_a_layer_may_be_targeted_as_a_parameter(make_adapter, architecture, target):
    settings = {"target_modules": [], "target_parameters": [target]}
    folder = make_adapter("weights", build_model(architecture), **settings)
    expected = peft_logits(build_model(architecture), folder)
    found = merged_logits(build_model(architecture), folder)
    assert not torch.allclose(expected, logits_of(build_model(architecture)), atol=1e-2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_targets_that_the_base_does_not_have_change_nothing(make_adapter, edit_config, model):
    folder = make_adapter("code")
    expected = load_experts([folder], model)[0].modules
    edit_config(folder, target_parameters=["experts.gate_up_proj"])
    found = load_experts([folder], model)[0].modules
    assert set(found) == set(expected)
    edit_config(folder, r=8)
    with pytest.raises(ValueError, match="expected rank 8 in model"):
        load_experts([folder], model)


@pytest.fixture
def two_experts(make_named_experts, make_parameters):
    """Experts of one base, the second without factors of one of the parameters."""
    folders = [
        make_named_experts("mixtral", router=True),
        make_parameters("mixtral", target_parameters=["experts.down_proj"]),
    ]
    return load_experts(folders, build_mixtral())


POP = torch.tensor([[0.7, -0.4], [0.0, 0.0], [-0.5, 1.2]])


def dense_logits(experts, coefficients):
    """The logits of a base to which each product was added, an expert after the other."""
    model = build_mixtral()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for coefficient, expert in zip(coefficients, experts, strict=True):
            for name, factors in expert.modules.items():
                weight = parameters.get(name, parameters.get(f"{name}.weight"))
                weight += coefficient * factors.scale * factors.b @ factors.a
    return logits_of(model)


def test_each_row_sees_the_parameters_of_its_candidate(two_experts):
    model = build_mixtral()
    modules = stack_experts(two_experts, torch.float32, torch.device("cpu"), model)
    expected = [dense_logits(two_experts, coefficients) for coefficients in POP]
    with merged(model, modules, POP) as population:
        for rows in ([0, 2], [2, 1], [1, 1]):
            population.select(rows)
            found = logits_of(model)
            for row, candidate in enumerate(rows):
                torch.testing.assert_close(
                    found[row], expected[candidate][row], rtol=1e-3, atol=1e-3
                )
    assert torch.equal(logits_of(model), logits_of(build_mixtral()))
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_parameters_are_merged_in_place_and_restored(two_experts):
    model = build_mixtral()
    modules = stack_experts(two_experts, torch.float32, torch.device("cpu"), model)
    with merged_in_place(WeightMerger(model, modules), POP) as candidates:
        for coefficients, _ in zip(POP, candidates, strict=True):
            expected = dense_logits(two_experts, coefficients)
            torch.testing.assert_close(logits_of(model), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(logits_of(model), logits_of(build_mixtral()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("coefficients", [[0.7, -0.4], [0.7, 0.0], [0.0, -0.4]])
def test_an_export_with_parameters_reloads_with_plain_peft(
    two_experts, tmp_path, coefficients, dtype
):
    coefficients = torch.tensor(coefficients)
    folder = tmp_path / "merge"
    export_adapter(two_experts, coefficients, folder, base="")
    expected = dense_logits(two_experts, coefficients)
    torch.testing.assert_close(peft_logits(build_mixtral(), folder), expected, rtol=1e-3, atol=1e-3)
    model = build_mixtral().to(dtype)
    assert reload_difference(model, two_experts, coefficients, folder) < 1e-6
    assert reload_difference(model, two_experts, coefficients * 1.01, folder) > 5e-3
    (again,) = load_experts([folder], build_mixtral())
    assert again.modules["model.layers.0.mlp.experts.down_proj"].a.shape[0] == EXPERTS


def test_a_problem_scores_both_modes_alike_and_exports(make_named_experts, make_parameters):
    folders = [make_named_experts("qwen3"), make_parameters("qwen3")]
    scores = {}
    for mode in ("unmerged", "merged"):
        problem = build_problem(folders, mode=mode)
        scores[mode] = problem.evaluate(POP)
        assert problem.export(POP[0], folders[0].parent / mode) < 1e-5
    torch.testing.assert_close(scores["unmerged"], scores["merged"], rtol=1e-3, atol=1e-3)
    assert scores["merged"].unique().numel() == len(POP)


def build_problem(folders, **settings):
    task = Task("t", "1", "gold_log_probability", (Example("0", "two", "four"),))
    return LoRAMergeProblem(
        build_qwen3_moe(), folders, [task], tokenizer=build_tokenizer(), **settings
    )


# Refusals


def test_parameters_are_not_regressed(make_parameters):
    folder = make_parameters("qwen3", "first")
    task = Task("t", "1", "gold_log_probability", (Example("0", "two", "four"),))
    message = "regmean: expected experts of layers, found model.layers.0.mlp.experts.down_proj in"
    for regmean in ({"first": [task]}, "weights", "prompts"):
        with pytest.raises(ValueError, match=message):
            build_problem([folder], regmean=regmean)


def test_so_many_patterns_that_modules_take_long_are_refused(make_named_experts):
    patterns = {f"layer{number}": 4 for number in range(19_999)}
    folder = make_named_experts("qwen3", alpha_pattern=patterns)
    tensors = load_file(folder / "adapter_model.safetensors")
    for number in range(80):
        for factor in "AB":
            key = f"base_model.model.layer.{number}.lora_{factor}.weight"
            tensors[key] = torch.ones(RANK, RANK)
    save_file(tensors, folder / "adapter_model.safetensors")
    message = "expected at most 18867 patterns in alpha_pattern for 106 modules, found 19999"
    with pytest.raises(ValueError, match=message):
        read_expert(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"left_out": ["w3"]}, "found that it .*w1 without also targeting w3"),
        (
            {"left_out": ["2.w1", "2.w2", "2.w3"]},
            r"expected lora_A \(16, 16\) .*, found \(12, 16\)",
        ),
        ({"left_out": ["w2"]}, "expected 1 pairs of factors for .*mlp.experts, found more"),
        ({"use_rslora": True}, "expected one scale for .*gate_up_proj, found .* by adapter_config"),
        ({"alpha_pattern": {"experts.1.w1": 3}}, "expected one scale for .*experts"),
    ],
)
def test_experts_by_name_that_peft_does_not_load_rightly_are_refused(
    make_named_experts, settings, message
):
    folder = make_named_experts("mixtral", **settings)
    with pytest.raises(ValueError, match=message):
        load_experts([folder], build_mixtral())


def test_parameters_of_another_size_are_refused(make_adapter, make_parameters):
    folder = make_parameters("mixtral")
    tensors = load_file(folder / "adapter_model.safetensors")
    for key, tensor in tensors.items():
        if "experts.lora_A" in key:
            tensors[key] = tensor[:, :8].contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="for .*down_proj, found .*; it belongs to another base"):
        load_experts([folder], build_mixtral())


def test_reading_alone_keeps_the_names_of_the_file(make_named_experts):
    modules = read_expert(make_named_experts("mixtral")).modules
    assert "model.layers.0.block_sparse_moe.experts.3.w2" in modules
