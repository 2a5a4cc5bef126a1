"""Exports of a merge, read by the library that a user has, beside sums made by hand."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from builders import build_model
from safetensors.torch import load_file

from evox_evogm.command.exports import (
    ExportFailed,
    export_adapter,
    export_compressed,
    export_full_model,
)
from evox_evogm.command.exports.exported import Exported, Scores, server_setting
from evox_evogm.command.exports.finish import table_elsewhere
from evox_evogm.command.exports.full_model import serve_model
from evox_evogm.command.exports.mergekit_recipe import serve_recipe
from evox_evogm.command.exports.staging import staged
from evox_evogm.command.licences import LicenceReport
from evox_evogm.problems import LoRAMergeProblem
from evox_evogm.problems.adapters.adapter_dtype import resolve_adapter_dtype
from evox_evogm.problems.adapters.read_adapter import read_expert

COEFFICIENTS = torch.tensor([0.7, -1.3])
TOKENS = torch.arange(1, 41).reshape(2, 20)


def summed_by_hand(shared, coefficients=COEFFICIENTS):
    """The base with lambda alpha / r B A added to each weight, from the adapters' files."""
    model = build_model()
    experts = zip(("first", "second"), coefficients.tolist(), strict=True)
    for name, coefficient in experts:
        folder = shared.folder / "experts" / name
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
        for key in tensors:
            if key.endswith("lora_A.weight"):
                module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                b = tensors[key.replace("lora_A", "lora_B")]
                scale = coefficient * config["lora_alpha"] / config["r"]
                model.get_submodule(module).weight.data += scale * b @ tensors[key]
    return model


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


def by_plain_peft(shared, folder):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(shared.folder / "base")
    return PeftModel.from_pretrained(base, folder).eval()


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


ADAPTER_FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors", "export.json"]


def test_the_exact_adapter_is_the_sum_and_says_what_was_compared(problem, shared, tmp_path, tasks):
    out = tmp_path / "adapter"
    exported = export_adapter(problem, COEFFICIENTS, out, tasks=tasks)
    expected = logits(summed_by_hand(shared))
    torch.testing.assert_close(logits(by_plain_peft(shared, out)), expected, rtol=1e-4, atol=1e-4)
    assert files_in(out) == ADAPTER_FILES
    assert exported.kind == "adapter" and exported.rank == 6 and exported.dtype == "float32"
    assert exported.relative_error < 1e-6 and exported.logits_difference < 1e-5
    assert exported.bytes >= (out / "adapter_model.safetensors").stat().st_size
    own = problem.score_tasks(COEFFICIENTS, tasks.test)
    for name, scores in own.items():
        assert exported.scores.means["test"][name] == pytest.approx(float(scores.mean()), abs=1e-5)
        error = float(scores.double().std()) / math.sqrt(len(scores))
        assert exported.scores.errors["test"][name] == pytest.approx(error, abs=1e-5)
    assert json.loads((out / "export.json").read_text())["rank"] == 6
    assert any("--max-lora-rank 8" in line for line in exported.lines())


@pytest.mark.parametrize(
    ("dtype", "least", "most"),
    [("bfloat16", 5e-4, 5e-3), pytest.param("float16", 1e-5, 1e-3, marks=pytest.mark.slow)],
)
def test_a_half_precision_says_its_error(problem, shared, tmp_path, dtype, least, most):
    out = tmp_path / "adapter"
    exported = export_adapter(problem, COEFFICIENTS, out, dtype=dtype)
    tensors = load_file(out / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
    assert least < exported.relative_error < most
    # The error that it says is that of the file.
    squares, total = 0.0, 0.0
    exact = summed_by_hand(shared)
    base = build_model()
    for key in tensors:
        if key.endswith("lora_A.weight"):
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            found = tensors[key.replace("lora_A", "lora_B")].float() @ tensors[key].float()
            delta = exact.get_submodule(module).weight - base.get_submodule(module).weight
            squares += float((found - delta).detach().square().sum())
            total += float(delta.detach().square().sum())
    assert exported.relative_error == pytest.approx(math.sqrt(squares / total), rel=0.05)
    card = (out / "README.md").read_text()
    assert f"Its tensors are rounded to {dtype}, by {exported.relative_error:.2g}" in card


def test_the_precision_of_the_experts_is_what_their_files_have_in_common(
    make_adapter, edit_tensors
):
    def halved(tensors):
        return {name: tensor.bfloat16() for name, tensor in tensors.items()}

    folders = [make_adapter("a"), make_adapter("b", seed=1)]
    experts = [read_expert(folder) for folder in folders]
    assert resolve_adapter_dtype("experts", experts) == torch.float32
    edit_tensors(folders[0], halved)
    assert resolve_adapter_dtype("experts", experts) == torch.float32
    edit_tensors(folders[1], halved)
    assert resolve_adapter_dtype("experts", experts) == torch.bfloat16


def test_a_compressed_adapter_is_loaded_as_the_best_of_its_rank(problem, shared, tmp_path, tasks):
    out = tmp_path / "adapter"
    exported = export_compressed(problem, COEFFICIENTS, out, rank=2, tasks=tasks)
    loaded = by_plain_peft(shared, out).merge_and_unload()
    base, exact = build_model(), summed_by_hand(shared)
    dropped, total = 0.0, 0.0
    for name in ("q_proj", "v_proj"):
        module = f"model.layers.0.self_attn.{name}"
        weight = base.get_submodule(module).weight
        delta = (exact.get_submodule(module).weight - weight).detach()
        found = (loaded.get_submodule(module).weight - weight).detach()
        u, values, vt = torch.linalg.svd(delta, full_matrices=False)
        torch.testing.assert_close(found, u[:, :2] * values[:2] @ vt[:2], rtol=1e-3, atol=1e-4)
        error = float(values[2:].norm() / values.norm())
        assert exported.module_errors[module] == pytest.approx(error, abs=1e-4)
    for module, error in exported.module_errors.items():
        delta = exact.get_submodule(module).weight - base.get_submodule(module).weight
        norm = float(delta.detach().norm())
        dropped += (error * norm) ** 2
        total += norm**2
    assert exported.relative_error == pytest.approx(math.sqrt(dropped / total), rel=1e-3)
    assert exported.rank == 2 and exported.kind == "compressed"
    assert exported.scores.means.keys() == {"dev", "test"}
    card = (out / "README.md").read_text()
    assert "with at most 2 channels in each module" in card and "--max-lora-rank 8" in card


@pytest.mark.slow
def test_a_tolerance_chooses_the_rank(problem, shared, tmp_path):
    exported = export_compressed(problem, COEFFICIENTS, tmp_path / "a", tolerance=0.3)
    assert 0 < exported.relative_error <= 0.3 and 1 <= exported.rank < 6
    whole = export_compressed(problem, COEFFICIENTS, tmp_path / "b", tolerance=1e-6)
    assert whole.rank == 6 and whole.relative_error < 1e-5


def test_a_full_model_needs_no_peft_and_has_all_that_a_base_has(problem, shared, tmp_path, tasks):
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    out = tmp_path / "model"
    exported = export_full_model(
        problem, COEFFICIENTS, out, dtype="float32", max_shard_size="20KB", tasks=tasks
    )
    loaded = AutoModelForCausalLM.from_pretrained(out)
    expected = logits(summed_by_hand(shared))
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)
    assert "model.safetensors.index.json" in files_in(out)
    assert GenerationConfig.from_pretrained(out).eos_token_id == 0
    assert AutoTokenizer.from_pretrained(out)("1 + 1").input_ids == (
        AutoTokenizer.from_pretrained(shared.folder / "base")("1 + 1").input_ids
    )
    assert exported.relative_error < 1e-5 and exported.rank is None
    own = exported.merge_scores.means["test"]
    assert exported.scores.means["test"] == pytest.approx(own, abs=1e-4)
    metadata = yaml.safe_load((out / "README.md").read_text().split("---\n")[1])
    assert metadata["library_name"] == "transformers"
    for page in ("README.md", "export.json"):
        assert "vllm serve path/of/this/folder" in (out / page).read_text()
        assert str(tmp_path) not in (out / page).read_text().replace(str(shared.folder), "")
    assert metadata["merge_coefficients"] == pytest.approx({"first": 0.7, "second": -1.3})


@pytest.mark.slow
def test_a_full_model_in_half_precision_says_what_rounding_costs(problem, shared, tmp_path):
    exported = export_full_model(problem, COEFFICIENTS, tmp_path / "model", dtype="bfloat16")
    assert exported.dtype == "bfloat16" and 1e-4 < exported.relative_error < 0.1
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


@pytest.mark.slow
def test_a_base_in_half_precision_is_exported_in_full(shared, tmp_path):
    """What the merge is compared with then computes in less than what is loaded."""
    folders = [expert.folder for expert in shared.problem.experts]
    base = str(shared.folder / "base")
    problem = LoRAMergeProblem(
        base, folders, shared.tasks.dev, mode="unmerged", dtype=torch.bfloat16
    )
    exported = export_full_model(problem, COEFFICIENTS, tmp_path / "model", dtype="float32")
    assert exported.relative_error < 1e-6 and 1e-4 < exported.logits_difference < 0.1
    assert "added to weights rounded to bfloat16" in exported.notes[0]
    same = export_full_model(problem, COEFFICIENTS, tmp_path / "same")
    assert same.dtype == "bfloat16" and same.notes == ()


@pytest.mark.slow
def test_the_base_is_as_before_after_all_exports(problem, shared, tmp_path):
    before = {
        name: weight.clone() for name, weight in problem.language_model.model.state_dict().items()
    }
    export_compressed(problem, COEFFICIENTS, tmp_path / "a", rank=1)
    export_full_model(problem, COEFFICIENTS, tmp_path / "b", dtype="float16")
    after = problem.language_model.model.state_dict()
    assert before.keys() == after.keys()
    for name, weight in after.items():
        assert torch.equal(weight, before[name])


def test_an_adapter_that_peft_reads_otherwise_leaves_nothing(
    problem, shared, tmp_path, monkeypatch
):
    from evox_evogm.command.exports import adapters

    def write_other(factors, folder, **settings):
        other = {name: module for name, module in factors.items()}
        first = next(iter(other))
        from dataclasses import replace

        other[first] = replace(other[first], b=1.5 * other[first].b)
        write(other, folder, **settings)

    write = adapters.write_adapter
    monkeypatch.setattr(adapters, "write_adapter", write_other)
    before = files_in(tmp_path)
    with pytest.raises(ExportFailed, match="expected plain peft to load what was written"):
        export_adapter(problem, COEFFICIENTS, tmp_path / "adapter")
    assert files_in(tmp_path) == before
    assert not any("lora" in name for name, _ in problem.language_model.model.named_modules())


def test_a_model_whose_logits_are_others_leaves_nothing(problem, shared, tmp_path, monkeypatch):
    from evox_evogm.command.exports import full_model

    copy = full_model.copy_with_merge

    def copy_other(model, factors, dtype, checkpoints):
        merged = copy(model, factors, dtype)
        merged.model.norm.weight.data.mul_(1.5)  # no weight that the merge changes
        return merged

    monkeypatch.setattr(full_model, "copy_with_merge", copy_other)
    before = files_in(tmp_path)
    with pytest.raises(ExportFailed, match="expected the logits of the merge within"):
        export_full_model(problem, COEFFICIENTS, tmp_path / "model")
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("dropped", ["all", "model.layers.1.mlp.up_proj"])
def test_a_model_in_half_precision_that_lacks_the_merge_or_a_module_of_it_leaves_nothing(
    problem, shared, tmp_path, monkeypatch, dropped
):
    from evox_evogm.command.exports import full_model

    copy = full_model.copy_with_merge

    def copy_less(model, factors, dtype, checkpoints):
        kept = {name: part for name, part in factors.items() if name != dropped}
        return copy(model, {} if dropped == "all" else kept, dtype)

    monkeypatch.setattr(full_model, "copy_with_merge", copy_less)
    before = files_in(tmp_path)
    with pytest.raises(ExportFailed, match="expected the weights of the merge in model.layers"):
        export_full_model(problem, COEFFICIENTS, tmp_path / "model", dtype="bfloat16")
    assert files_in(tmp_path) == before


def test_a_compressed_adapter_beyond_its_tolerance_leaves_nothing(
    problem, shared, tmp_path, monkeypatch
):
    from evox_evogm.command.exports import adapters

    def compress_more(factors, *, rank, tolerance):
        return compress(factors, rank=1)

    compress = adapters.compress
    monkeypatch.setattr(adapters, "compress", compress_more)
    with pytest.raises(ExportFailed, match="expected a compressed adapter within 0.05"):
        export_compressed(problem, COEFFICIENTS, tmp_path / "a", tolerance=0.05)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("name", ["m", "lora", "64"])
def test_the_command_of_a_page_is_whole_whatever_the_folder_is_called(tmp_path, name):
    """`vllm serve` is garbled where each m of it is taken for the folder."""
    nothing = LicenceReport(())
    common = {"kind": "model", "folder": Path(name), "bytes": 0, "dtype": "float32"}
    common |= {"relative_error": 0.0, "module_errors": {}, "rank": 64, "logits_difference": 0.0}
    scores = Scores({}, {})
    for serve_at, expected in (
        (serve_model, "vllm serve path/of/this/folder"),
        (lambda _: server_setting(64), server_setting(64)),
        (
            serve_recipe,
            "mergekit-yaml path/of/this/folder/recipe.yaml merged --lora-merge-dtype float32 "
            "--lora-merge-cache adapted",
        ),
    ):
        exported = Exported(
            **common, scores=scores, merge_scores=scores, serve_at=serve_at, licences=nothing
        )
        assert table_elsewhere(exported)["serve"] == expected
    assert serve_model("my models/m") == "vllm serve 'my models/m'"


def test_a_full_disk_leaves_nothing_and_what_was_there_stays(
    problem, shared, tmp_path, monkeypatch
):
    from evox_evogm.command.exports import adapters

    out = tmp_path / "adapter"
    export_adapter(problem, COEFFICIENTS, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(adapters, "write_card", full)
    with pytest.raises(OSError, match="No space left"):
        export_adapter(problem, -COEFFICIENTS, out, replace=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert files_in(tmp_path) == ["adapter"]


def test_a_folder_with_files_is_refused_unless_it_may_be_replaced(problem, shared, tmp_path):
    out = tmp_path / "adapter"
    export_adapter(problem, COEFFICIENTS, out)
    with pytest.raises(ValueError, match="out: expected a new or empty folder, found"):
        export_compressed(problem, COEFFICIENTS, out, rank=2)
    exported = export_compressed(problem, COEFFICIENTS, out, rank=2, replace=True)
    assert exported.rank == 2
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="out: expected a folder, found the file"):
        export_adapter(problem, COEFFICIENTS, tmp_path / "file", replace=True)


@pytest.mark.parametrize("replace", [False, True])
def test_no_folder_of_a_like_name_is_touched(tmp_path, replace):
    """Such as a user's own `out.old`."""
    for name in ("out.old", "out.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("x")
    if replace:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "earlier").write_text("z")
    with staged(tmp_path / "out", replace=replace) as part:
        (part / "whole").write_text("y")
    assert files_in(tmp_path) == ["out", "out.old", "out.part"]
    assert files_in(tmp_path / "out") == ["whole"]
    assert files_in(tmp_path / "out.old") == files_in(tmp_path / "out.part") == ["mine"]
    (tmp_path / "plain").mkdir()  # the mode is that of any folder
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_was_there_gets_its_name_back_where_the_new_folder_cannot_have_it(
    tmp_path, monkeypatch
):
    out = tmp_path / "out"
    out.mkdir()
    (out / "earlier").write_text("z")
    rename = Path.rename

    def fail(path, target):
        if path.name == "new":
            raise OSError(18, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="cross-device"), staged(out, replace=True) as part:
        (part / "whole").write_text("y")
    assert files_in(tmp_path) == ["out"] and files_in(out) == ["earlier"]


@pytest.mark.parametrize(
    ("coefficients", "words"),
    [
        ([0.0, 0.0], "found all 0; the merge is the base model itself"),
        ([1.0], r"expected 2, found \(1,\)"),
        ([1.0, float("nan")], "expected finite numbers, found others"),
    ],
)
def test_coefficients_that_are_no_merge_are_refused(problem, shared, tmp_path, coefficients, words):
    for export in (export_adapter, export_full_model):
        with pytest.raises(ValueError, match=words):
            export(problem, torch.tensor(coefficients), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_name_of_a_precision_that_is_none_is_refused(problem, shared, tmp_path):
    with pytest.raises(ValueError, match="expected float32, bfloat16, float16 or experts, found"):
        export_adapter(problem, COEFFICIENTS, tmp_path / "out", dtype="int8")
    with pytest.raises(ValueError, match="expected base, float32, bfloat16, float16, found"):
        export_full_model(problem, COEFFICIENTS, tmp_path / "out", dtype="experts")


def test_strict_licences_refuse_what_has_none(problem, shared, tmp_path):
    words = "strict_licences: expected licences that can be had together, found that the licence of"
    with pytest.raises(ValueError, match=words):
        export_adapter(problem, COEFFICIENTS, tmp_path / "out", strict_licences=True)
    assert not (tmp_path / "out").exists()
    cards = [folder / "README.md" for folder in (shared.folder / "experts").iterdir()]
    cards.append(shared.folder / "base" / "README.md")
    before = {card: card.read_text() for card in cards if card.exists()}
    try:
        for card in cards:
            card.write_text("---\nlicense: mit\n---\n")
        exported = export_adapter(problem, COEFFICIENTS, tmp_path / "out", strict_licences=True)
    finally:
        for card in cards:
            card.unlink()
            if card in before:
                card.write_text(before[card])
    assert exported.licences.licence == "mit"
    metadata = yaml.safe_load((tmp_path / "out/README.md").read_text().split("---\n")[1])
    assert metadata["license"] == "mit"


@pytest.mark.parametrize(
    ("rank", "setting"),
    [
        (1, "--max-lora-rank 8"),
        (8, "--max-lora-rank 8"),
        (9, "--max-lora-rank 16"),
        (64, "--max-lora-rank 64"),
        (129, "--max-lora-rank 256"),
        (300, "--max-lora-rank 320"),
        (512, "--max-lora-rank 512"),
        (513, "more than vLLM takes (512); compress the adapter"),
    ],
)
def test_the_server_setting_is_the_next_rank_that_vllm_takes(rank, setting):
    assert setting in server_setting(rank)


def test_the_python_of_the_page_runs(problem, tmp_path, monkeypatch, capsys):
    page = Path(__file__).parents[3] / "evox_evogm" / "command" / "exports" / "README.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {"problem": problem, "coefficients": COEFFICIENTS})
    assert "--max-lora-rank 8" in capsys.readouterr().out
    assert files_in(tmp_path / "merge-16") == ADAPTER_FILES
