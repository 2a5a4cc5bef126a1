"""Builders that tests share: tiny random language models, a tokenizer, and runs of the command."""

import torch
import yaml


def build_tokenizer():
    """One token per byte, and an end-of-text token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<end>", *alphabet])}
    core = Tokenizer(models.BPE(vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


def build_model(architecture: str = "llama", **changes):
    """A random causal LM with 2 layers of width 16 and a vocabulary of 257, in float32."""
    import transformers as hf

    torch.manual_seed(7)
    shared = {
        "vocab_size": 257,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    if architecture == "gpt2":
        shared.pop("initializer_range")
        shared |= {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256, **changes}
        return hf.GPT2LMHeadModel(hf.GPT2Config(**shared)).eval()
    shared |= {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    shared |= {"num_attention_heads": 4, "num_key_value_heads": 2, **changes}
    if architecture == "gemma":
        return hf.GemmaForCausalLM(hf.GemmaConfig(head_dim=4, **shared)).eval()
    names = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    config = getattr(hf, f"{names[architecture]}Config")(**shared)
    return getattr(hf, f"{names[architecture]}ForCausalLM")(config).eval()


def record_passes(language_model):
    """The sizes (rows, tokens of each) of the forward passes that are made from now on."""
    from evox_evogm.problems.inference.forward import Forward

    sizes = []

    class RecordingForward(Forward):
        def __call__(self, candidates, tokens, *rest, **named):
            sizes.append(tuple(tokens.shape))
            return super().__call__(candidates, tokens, *rest, **named)

    language_model.forward = RecordingForward(language_model.model)
    return sizes


def change_settings(project, **changes):
    """Change the settings file of a project; `...` takes a setting out."""
    path = project / "run.yaml"
    settings = {**yaml.safe_load(path.read_text()), **changes}
    kept = {name: value for name, value in settings.items() if value is not ...}
    path.write_text(yaml.safe_dump(kept))


def merge(project, *options, out="out"):
    """Run `evogm merge` on a project; its exit status."""
    from evox_evogm.command import cli

    return cli.main(["merge", str(project / "run.yaml"), "--out", str(project / out), *options])


def interrupt_searches(monkeypatch, steps):
    """Have every search interrupted after so many steps."""
    from evox_evogm.resume.resumable_search import ResumableSearch

    run = ResumableSearch.run

    def interrupted(search, _):
        run(search, steps)
        raise KeyboardInterrupt

    monkeypatch.setattr(ResumableSearch, "run", interrupted)


def history(out):
    """The evaluations of a run without what depends on the clock."""
    from evox_evogm.resume.journal import read_blocks

    records = []
    for block in read_blocks(out / "history.jsonl"):
        records += block.records
    for record in records:
        del record["seconds"]
    return records


# Two experts per architecture, in layers of different kinds.
TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj", "embed_tokens"],
    "qwen2": ["k_proj", "o_proj", "gate_proj", "lm_head"],
    "gemma": ["q_proj", "up_proj", "embed_tokens"],
    "gpt2": ["c_attn", "c_proj"],
}

# Every way in which two adapters of one base may differ.
MIXED = [
    {"r": 2, "lora_alpha": 7, "target_modules": ["q_proj"]},
    {
        "r": 5,
        "lora_alpha": 3,
        "target_modules": ["q_proj", "down_proj", "lm_head"],
        "use_rslora": True,
    },
    {
        "r": 3,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "v_proj", "o_proj"],
        "rank_pattern": {"v_proj": 6, "layers.0.self_attn.q_proj": 1},
        "alpha_pattern": {"v_proj": 5, "model.layers.1.self_attn.o_proj": 12},
    },
    {"r": 4, "lora_alpha": 8, "target_modules": ["up_proj", "embed_tokens"]},
]


def two_adapters(architecture, make_adapter):
    """The folders of two adapters of `build_model(architecture)`, by the fixture `make_adapter`."""
    folders = []
    for index in range(2):
        settings = {"r": 2 + index, "target_modules": TARGETS[architecture]}
        name = f"{architecture}{index}"
        folders.append(make_adapter(name, build_model(architecture), seed=index, **settings))
    return folders


def mixed_adapters(make_adapter):
    """The folders of the `MIXED` adapters of `build_model()`, by the fixture `make_adapter`."""
    folders = []
    for index, settings in enumerate(MIXED):
        folders.append(make_adapter(f"expert{index}", seed=index, **settings))
    return folders


def stack_folders(folders, dtype=torch.float32):
    """The stacked factors of the adapters in these folders, on the CPU."""
    from evox_evogm.problems.adapters.read_adapter import read_expert
    from evox_evogm.problems.adapters.stacked_modules import stack_experts

    experts = [read_expert(folder) for folder in folders]
    return stack_experts(experts, dtype, torch.device("cpu"))
