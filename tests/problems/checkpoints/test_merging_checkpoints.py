"""Merges with whole models, beside sums of state dicts that plain transformers loads."""

from pathlib import Path

import pytest
import torch
from builders import build_model
from builders_checkpoints import changed
from pretend_device import pretend_accelerator
from safetensors.torch import load_file, save_file

from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.adapters.weight_merger import merged_in_place
from evox_evogm.problems.checkpoints import checkpoint_files
from evox_evogm.problems.checkpoints.differences import Differences
from evox_evogm.problems.one_merge import as_one_merge

SUMS = Task(
    "sums", "1", "gold_log_probability", (Example("0", "1+1=", "2"), Example("1", "2+5=", "7"))
)
TOKENS = torch.arange(1, 41).reshape(2, 20)


def load_plainly(folder, dtype=torch.float32):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def summed(base, experts, coefficients):
    """The state dict of the sum in float64: base + sum of coefficients times differences."""
    own = {name: value.double() for name, value in base.state_dict().items()}
    total = {name: value.clone() for name, value in own.items()}
    for expert, coefficient in zip(experts, coefficients, strict=True):
        for name, value in expert.state_dict().items():
            total[name] += coefficient * (value.double() - own[name])
    return total


def make_problem(base, experts, dtype=torch.float32, **settings):
    return LoRAMergeProblem(str(base), experts, [SUMS], dtype=dtype, **settings)


@torch.no_grad()
def logits_of(problem, coefficients):
    with as_one_merge(problem.scorer, coefficients) as merge:
        return merge.model(TOKENS).logits


@pytest.fixture
def base(write_model, tokenizer):
    folder = write_model("base")
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_scores_and_logits_are_those_of_the_sum_of_state_dicts(base, write_model, tokenizer):
    experts = [write_model("first", 1), write_model("second", 2, only="mlp")]
    problem = make_problem(base, experts)
    coefficients = torch.tensor([0.6, -0.8])
    plain = build_model()
    models = [load_plainly(folder) for folder in experts]
    plain.load_state_dict(summed(load_plainly(base), models, coefficients.tolist()))
    found = logits_of(problem, coefficients)
    torch.testing.assert_close(found, plain(TOKENS).logits, rtol=1e-4, atol=1e-4)
    scores = problem.score_tasks(coefficients)["sums"]
    for example, score in zip(SUMS.examples, scores.tolist(), strict=True):
        prompt = tokenizer(example.prompt).input_ids
        answer = tokenizer(f" {example.target}").input_ids
        logits = plain(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        places = torch.arange(len(answer)) + len(prompt) - 1
        expected = logits[places, answer].mean()
        assert score == pytest.approx(float(expected), abs=1e-4)
    assert problem.modes == {} and problem.evaluate(coefficients[None]).shape == (1,)
    assert problem.modes == {"sums": "merged"}


@torch.no_grad()
@pytest.mark.parametrize(
    ("architecture", "targets", "settings", "chunk"),
    [
        ("llama", ["q_proj", "embed_tokens"], {}, 40),  # two rows at a time, of 257 and 16
        ("llama", ["q_proj", "embed_tokens"], {"tie_word_embeddings": True}, 2**16),
        ("llama", ["lm_head"], {"tie_word_embeddings": True}, 50),
        ("gpt2", ["c_attn", "c_proj"], {}, 100),
        ("qwen2", ["k_proj", "down_proj"], {}, 2**16),
    ],
)
def test_a_mixed_set_is_plain_peft_plus_the_difference(
    architecture, targets, settings, chunk, write_model, make_adapter, tokenizer, monkeypatch
):
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    monkeypatch.setattr(checkpoint_files, "CHUNK", chunk)
    folder = write_model("base", architecture=architecture, **settings)
    tokenizer.save_pretrained(folder)
    full = write_model("full", 1, architecture=architecture, **settings)
    built = build_model(architecture, **settings)
    adapter = make_adapter("lora", built, seed=2, target_modules=targets)
    problem = make_problem(folder, [adapter, full])
    total = summed(load_plainly(folder), [load_plainly(full)], [-0.7])
    # Loaded before the weights change, because adapters of embeddings hold a copy of them.
    plain = PeftModel.from_pretrained(load_plainly(folder), adapter)
    for name, value in total.items():
        holder, _, last = name.rpartition(".")
        layer = plain.base_model.model.get_submodule(holder)
        getattr(getattr(layer, "base_layer", layer), last).copy_(value)
    for module in plain.modules():
        if isinstance(module, LoraLayer):
            module.scaling["default"] *= 0.4
    found = logits_of(problem, torch.tensor([0.4, -0.7]))
    torch.testing.assert_close(found, plain(TOKENS).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_coefficient_of_1_gives_the_expert_back_bit_for_bit(base, write_model, dtype):
    write_model("low", dtype=dtype)
    expert = write_model("expert", 1, dtype=dtype)
    # Among them some that no difference in float32 gives back.
    tensors = load_file(expert / "model.safetensors")
    tensors["model.norm.weight"][:3] = torch.tensor([1e-7, -3e-7, 0.0], dtype=dtype)
    save_file(tensors, expert / "model.safetensors", metadata={"format": "pt"})
    low = base.parent / "low"
    for file in base.glob("tokenizer*"):
        (low / file.name).write_bytes(file.read_bytes())
    other = write_model("other", 2, dtype=dtype)
    problem = make_problem(low, [expert, other], dtype=dtype)
    model = problem.language_model.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pop = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    with merged_in_place(problem.scorer.weight_merger, pop) as candidates:
        for folder, _ in zip((expert, other, low), candidates, strict=True):
            for name, value in load_file(folder / "model.safetensors").items():
                assert torch.equal(model.get_parameter(name), value), name
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_small_differences_survive_in_bfloat16(base, write_model):
    """Two experts in float32 whose small changes add up, over a base that is loaded in bfloat16."""
    experts = []
    for seed in (1, 2):
        model = build_model()
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-3 * torch.randn(parameter.shape))
        model.save_pretrained(base.parent / f"small{seed}")
        experts.append(base.parent / f"small{seed}")
    problem = make_problem(base, experts, dtype=torch.bfloat16)
    coefficients = [3.0, -2.0]
    models = [load_plainly(folder) for folder in experts]
    expected = summed(load_plainly(base), models, coefficients)
    pop = torch.tensor([coefficients])
    model = problem.language_model.model
    with merged_in_place(problem.scorer.weight_merger, pop) as candidates:
        next(candidates)
        for name, value in model.state_dict().items():
            assert (value.double() - expected[name]).abs().max() <= (
                2**-8 * expected[name].abs().max()
            )
            # The sum is rounded once: as near as bfloat16 comes, but for float32's own rounding.
            torch.testing.assert_close(
                value.float(), expected[name].bfloat16().float(), rtol=2**-7, atol=0
            )
            same = (value == expected[name].bfloat16()).float().mean()
            assert same > 0.99, name


@torch.no_grad()
def test_unchanged_tensors_are_not_kept_and_not_written(base, write_model):
    expert = write_model("expert", 1, only="layers.1.mlp")
    problem = make_problem(base, [expert])
    kept = problem.scorer.differences
    assert sorted(kept.experts) == [
        f"model.layers.1.mlp.{name}_proj.weight" for name in ("down", "gate", "up")
    ]
    assert set(kept.base.kept) == set(kept.experts)
    model = problem.language_model.model
    others = {name: value._version for name, value in model.named_parameters()}
    with merged_in_place(problem.scorer.weight_merger, torch.tensor([[0.5]])) as candidates:
        next(candidates)
    for name, value in model.named_parameters():
        assert (value._version == others[name]) == (name not in kept.experts)


def test_experts_and_base_are_mapped_from_their_files_not_copied(base, write_model):
    expert = write_model("expert", 1, max_shard_size="20KB")
    shards = sorted(path.name for path in expert.glob("*.safetensors"))
    assert len(shards) > 1
    problem = make_problem(base, [expert])
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].endswith(".safetensors"):
            first, last = (int(part, 16) for part in fields[0].split("-"))
            mapped.append((first, last, Path(fields[5]).parent.name))
    differences = problem.scorer.differences
    for name, parts in differences.experts.items():
        tensors = [("expert", parts[0][1]), ("base", differences.base.kept[name])]
        for folder, tensor in tensors:
            address = tensor.data_ptr()
            where = [place for first, last, place in mapped if first <= address < last]
            assert where == [folder], name
    assert problem.experts[0].checkpoint.words() == (
        "full checkpoint, 21 of 21 tensors differ, 50.4 KiB of differences, mapped from its files"
    )


@torch.no_grad()
def test_a_loaded_base_is_copied_where_it_changes(write_model, tokenizer):
    expert = write_model("expert", 1)
    model = build_model()
    problem = LoRAMergeProblem(model, [expert], [SUMS], tokenizer=tokenizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = logits_of(problem, torch.tensor([1.0]))
    torch.testing.assert_close(found, load_plainly(expert)(TOKENS).logits, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_groups_hold_for_whole_models_and_what_is_in_no_layer_is_one_more(base, write_model):
    expert = write_model("expert", 1)
    problem = make_problem(base, [expert], groups="layer")
    assert problem.groups.names == ("rest", "model.layers.0", "model.layers.1")
    other, first, second = 0.3, -0.5, 0.9
    expected = load_plainly(base)
    own = load_plainly(expert).state_dict()
    for name, value in expected.named_parameters():
        weight = {"model.layers.0": first, "model.layers.1": second}.get(name[:14], other)
        value += weight * (own[name] - value)
    found = logits_of(problem, torch.tensor([other, first, second]))
    torch.testing.assert_close(found, expected(TOKENS).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_with_channels_a_whole_model_has_the_coefficient_of_the_first(
    base, write_model, make_adapter
):
    experts = [write_model("expert", 1), make_adapter("lora", r=3, seed=2)]
    problem = make_problem(base, experts, groups="channel")
    groups = problem.groups
    # Of 2 layers: q and v have the adapter's 3 channels, the whole model changes more modules.
    modules = set(groups.of_module)
    assert groups.count == len(modules) + 2 * 2 * (3 - 1)
    coefficients = groups.expand(torch.tensor([0.6, -0.8]))
    firsts = list(groups.of_module.values())
    others = [number for number in range(groups.count) if number not in firsts]
    groups.by_expert(coefficients)[0, others] = 100.0  # of the whole model, which has none there
    found = logits_of(problem, coefficients)
    expected = logits_of(make_problem(base, experts), torch.tensor([0.6, -0.8]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_tensors_that_transformers_fuses_are_loaded_by_it(tmp_path, tokenizer):
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    sizes = {"vocab_size": 257, "hidden_size": 16, "intermediate_size": 32, "eos_token_id": 0}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    sizes |= {"shared_expert_intermediate_size": 8, "initializer_range": 0.3, "pad_token_id": 0}
    for name in ("base", "expert"):
        torch.manual_seed(7)
        model = Qwen2MoeForCausalLM(Qwen2MoeConfig(**sizes))
        if name == "expert":
            changed(model, 1)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    problem = make_problem(tmp_path / "base", [tmp_path / "expert"])
    assert not problem.experts[0].checkpoint.mapped
    expected = load_plainly(tmp_path / "base")
    models = [load_plainly(tmp_path / "expert")]
    expected.load_state_dict(summed(expected, models, [0.7]))
    found = logits_of(problem, torch.tensor([0.7]))
    torch.testing.assert_close(found, expected(TOKENS).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_on_a_device_weights_come_from_the_files_of_the_machine(
    base, write_model, make_adapter, monkeypatch
):
    experts = [write_model("expert", 1), make_adapter("lora", seed=2)]
    coefficients = torch.tensor([0.6, -0.8])
    expected = make_problem(base, experts).score_tasks(coefficients)["sums"]
    with pretend_accelerator() as device:
        problem = make_problem(base, experts, device=device)
        kept = problem.scorer.differences.base.kept.values()
        assert all(tensor.device.type == "cpu" for tensor in kept)
        devices = []
        own = Differences.parts

        def parts(differences, name, numbers):
            devices.append(numbers.device.type)
            return own(differences, name, numbers)

        monkeypatch.setattr(Differences, "parts", parts)
        problem.scorer.weight_merger.load(coefficients.to(device))
        problem.scorer.weight_merger.restore()
        assert devices == ["cpu"] * 21  # no number waits for the device
        found = problem.score_tasks(coefficients)["sums"]
    torch.testing.assert_close(found, expected)


def test_points_that_differ_little_are_other_merges(base, write_model):
    """Coefficients of adapters are rounded to the model's dtype, those of whole models are not."""
    expert = write_model("expert", 1)
    problem = make_problem(base, [expert], dtype=torch.bfloat16)
    pop = torch.tensor([[0.5], [0.5 + 2**-12], [0.5]])
    assert len(problem.cache.unseen(pop)) == 2
