"""Builders that tests share: tiny random language models, a byte-level tokenizer, and runs of the command."""

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
    names = {"llama": "Llama", "qwen2": "Qwen2"}
    config = getattr(hf, f"{names[architecture]}Config")(**shared)
    return getattr(hf, f"{names[architecture]}ForCausalLM")(config).eval()


def change_settings(project, **changes):
    path = project / "run.yaml"
    settings = {**yaml.safe_load(path.read_text()), **changes}
    path.write_text(
        yaml.safe_dump({name: value for name, value in settings.items() if value is not ...})
    )


def merge(project, *options, out="out"):
    from evox_evogm.command import cli

    return cli.main(["merge", str(project / "run.yaml"), "--out", str(project / out), *options])


def history(out):
    """The evaluations of a run without what depends on the clock."""
    from evox_evogm.resume.journal import read_blocks

    rows = [record for block, _ in read_blocks(out / "history.jsonl") for record in block]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
