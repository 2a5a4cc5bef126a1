"""Loading a base: whole, alone and of a kind that can be merged, or refused in a sentence."""

import json
import shutil

import pytest
import torch
from builders import build_model, build_tokenizer
from safetensors.torch import load_file, save_file

from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.inference.base_model import (
    convert_gguf,
    default_dtype,
    load_base,
    load_model,
    make_once,
    ready_to_score,
)
from evox_evogm.problems.inference.check_base import check_model

CPU = torch.device("cpu")
TASK = Task("t", "1", "gold_log_probability", (Example("0", "two", "four"),))


def save(folder, model, rename=lambda name: name, keep=lambda name: True):
    """Save a model and a tokenizer, with other names of tensors, or without some."""
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = {rename(name): value for name, value in load_file(file).items() if keep(name)}
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def load(folder):
    return load_base(folder, dtype=torch.float32, device=CPU)[0]


def sequence_classifier(**changes):
    import transformers as hf

    return hf.LlamaForSequenceClassification(build_model(**changes).config)


def encoder_decoder():
    import transformers as hf

    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = hf.WhisperConfig(vocab_size=257, pad_token_id=0, **sizes)
    return hf.WhisperForConditionalGeneration(config)


def test_the_default_dtype_is_one_that_the_processor_computes_in():
    known = torch.cpu.get_capabilities()
    fast = known.get("avx512_bf16") or known.get("amx_bf16")
    assert default_dtype(CPU) == (torch.bfloat16 if fast else torch.float32)


def test_a_base_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        ValueError, match="base: expected a transformers folder or hub id, found '.*nowhere'"
    ):
        load(tmp_path / "nowhere")


def test_pickled_base_weights_are_not_read(tmp_path, model, tokenizer):
    model.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="base: expected"):
        load(tmp_path)


@torch.no_grad()
@pytest.mark.language_model
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_whole_base_is_loaded(tmp_path, architecture, tied):
    model = build_model(architecture, tie_word_embeddings=tied)
    loaded = load(save(tmp_path, model))
    tokens = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.language_model
def test_tied_weights_and_buffers_of_old_releases_are_not_missed(tmp_path):
    model = build_model(tie_word_embeddings=True)
    load(save(tmp_path / "inner", model.model))  # the output layer is the embedding
    folder = save(tmp_path / "old", model)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    load(folder)


@pytest.mark.language_model
@pytest.mark.parametrize(
    ("make", "rename", "keep", "message"),
    [
        (sequence_classifier, None, None, "holds a LlamaForSequenceClassification"),
        (
            lambda: sequence_classifier(tie_word_embeddings=True),
            None,
            None,
            r"1 tensor without a place in it \(score.weight\)",
        ),
        (lambda: build_model().model, None, None, r"1 missing \(lm_head.weight\)"),
        (build_model, "_orig_mod.", None, "compiled._orig_mod"),
        (build_model, "module.", None, "wrapped.module"),
        (build_model, "base_model.model.", None, r"merge_and_unload\(\)"),
        (build_model, None, "norm", r"5 missing .*; download it again"),
        (encoder_decoder, None, None, "encoder-decoder of texts .* encoder-decoder 'whisper'"),
    ],
)
def test_a_base_that_would_be_loaded_in_part_is_refused(tmp_path, make, rename, keep, message):
    folder = save(
        tmp_path,
        make(),
        rename=lambda name: f"{rename or ''}{name}",
        keep=lambda name: keep is None or keep not in name,
    )
    with pytest.raises(ValueError, match=f"base: expected .*{message}") as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.language_model
def test_a_layer_of_another_number_is_refused(tmp_path):
    folder = save(tmp_path, build_model(), rename=lambda n: n.replace("layers.1", "layers.7"))
    with pytest.raises(ValueError, match="9 missing .* and 9 tensors without a place"):
        load(folder)


@pytest.mark.language_model
def test_an_adapter_in_the_folder_of_the_base_is_refused(tmp_path, make_adapter):
    adapter = make_adapter("stale")
    folder = save(tmp_path / "base", build_model())
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, folder / name)
    with pytest.raises(ValueError, match="found an adapter .* beside it .* move the adapter"):
        load(folder)
    with pytest.raises(ValueError, match="expected a model, found an adapter in '.*stale'"):
        load(adapter)


@pytest.mark.language_model
def test_a_hostile_tokenizer_is_refused(tmp_path):
    folder = save(tmp_path, build_model())
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="found '.*': tokenizer: expected one that the library"):
        load(folder)


@pytest.mark.language_model
def test_a_wrapped_model_is_refused(make_adapter):
    from peft import PeftModel

    folder = make_adapter("one")
    wrapped = PeftModel.from_pretrained(build_model(), folder)
    cases = {
        r"PeftModelForCausalLM; give what its unload\(\) returns": wrapped,
        "found an adapter of peft in model.layers.0": wrapped.get_base_model(),
        "torch.compile's OptimizedModule": torch.compile(build_model(), backend="eager"),
        r"found DataParallel; give its .module": torch.nn.DataParallel(build_model()),
        "found LlamaForSequenceClassification without an output layer": sequence_classifier(),
        "found LlamaModel without an output layer": build_model().model,
        "the encoder-decoder 'whisper'": encoder_decoder(),
        "found Linear without an output layer": torch.nn.Linear(2, 2),
        "found some offloaded": build_model().to("meta"),
    }
    for message, base in cases.items():
        with pytest.raises(ValueError, match=f"base: expected .*{message}"):
            LoRAMergeProblem(base, [folder], [TASK], tokenizer=build_tokenizer())
    check_model(wrapped.unload())


@pytest.mark.language_model
def test_a_loaded_model_gets_back_its_modes_and_gradients(make_adapter, tmp_path):
    folder = make_adapter("one")
    model = build_model(attention_dropout=0.5)
    model.train()
    model.model.norm.eval()
    model.lm_head.weight.requires_grad_(False)
    training = [module.training for module in model.modules()]
    learning = [parameter.requires_grad for parameter in model.parameters()]
    problem = LoRAMergeProblem(model, [folder], [TASK], tokenizer=build_tokenizer())
    scores = problem.evaluate(torch.ones(2, 1))
    problem.export(torch.ones(1), tmp_path / "merge")
    assert [module.training for module in model.modules()] == training
    assert [parameter.requires_grad for parameter in model.parameters()] == learning
    model.eval()
    again = LoRAMergeProblem(model, [folder], [TASK], tokenizer=build_tokenizer())
    torch.testing.assert_close(again.evaluate(torch.ones(2, 1)), scores)


@pytest.mark.language_model
@pytest.mark.parametrize("mode", ["unmerged", "merged"])
@pytest.mark.parametrize("objectives", ["mean", "outcomes"])
@pytest.mark.parametrize("regressed", [False, True])
def test_the_default_dtype_of_the_caller_changes_no_number(
    make_adapter, tmp_path, mode, objectives, regressed
):
    folders = [make_adapter("one", seed=1), make_adapter("two", seed=2)]
    settings = {"tokenizer": build_tokenizer(), "mode": mode, "objectives": objectives}
    if regressed:
        settings["regmean"] = {"one": [TASK], "two": [TASK]}
    model, point = build_model(), torch.tensor([[0.3, -0.7]])

    def run(folder):
        problem = LoRAMergeProblem(model, folders, [TASK], **settings)
        fitness = problem.evaluate(point)
        assert problem.export(point[0], folder) < 1e-5
        return [
            fitness,
            *problem.box,
            *problem.outcomes,
            *load_file(folder / "adapter_model.safetensors").values(),
        ]

    expected = run(tmp_path / "expected")
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = run(tmp_path / "found")
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_modes_come_back_after_an_error():
    model = build_model().train()
    with pytest.raises(KeyError), ready_to_score(model):
        assert not model.training
        raise KeyError
    assert model.training and model.model.norm.training


def test_a_loaded_model_needs_its_tokenizer():
    with pytest.raises(ValueError, match="tokenizer: expected one together with a loaded model"):
        load_model(build_model(), None, None, None, False)


@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyboardInterrupt()])
def test_a_converted_model_is_made_once_and_leaves_nothing_behind(tmp_path, error):
    folder = tmp_path / "cache" / "model"
    made = []

    def make(scratch):
        made.append(scratch)
        scratch.mkdir()
        (scratch / "weights").write_text("half")
        if len(made) == 1:
            raise error
        (scratch / "config.json").write_text("{}")

    with pytest.raises(type(error)):
        make_once(folder, make)
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == []
    # What a killed process left is removed: its scratch folder, and a folder without an end.
    for leftover in (folder, made[0]):
        leftover.mkdir()
        (leftover / "rest").write_text("rest")
    assert make_once(folder, make) == folder
    assert make_once(folder, make) == folder
    assert len(made) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights"]
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == ["model"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gguf_file_becomes_a_plain_folder_of_its_own_architecture(tmp_path, monkeypatch, dtype):
    import transformers

    asked = []

    def read_model(source, **options):
        """A model as transformers makes it of a GGUF file: it counts as quantized."""
        asked.append((source, options))
        model = build_model("qwen2")
        model.config.quantization_config = options.get("quantization_config")
        return model

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", read_model)
    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: build_tokenizer()
    )
    convert_gguf(tmp_path / "in" / "model.gguf", tmp_path / "out", dtype)
    monkeypatch.undo()
    ((source, options),) = asked
    assert (source, options["gguf_file"]) == (tmp_path / "in", "model.gguf")
    # Without it, weights stay packed wherever the package kernels is installed.
    if hasattr(transformers, "GgufConfig"):
        assert options["quantization_config"].dequantize
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert type(loaded).__name__ == "Qwen2ForCausalLM"
    for name, weight in build_model("qwen2").state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.to(dtype))
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("a")["input_ids"]
