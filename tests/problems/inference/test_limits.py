"""The limits of a base beside what its own forward pass does."""

import pytest
import torch

from evox_evogm.problems.inference.limits import Limits, limits_of

SIZES = {"vocab_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
GPT = {"vocab_size": 64, "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 40}
OTHERS = {
    "OPT": {**SIZES, "ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 40},
    "GPTNeo": {
        "vocab_size": 64,
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "max_position_embeddings": 40,
        "attention_types": [[["global"], 1]],
    },
    "GPTJ": {**GPT, "rotary_dim": 4},
    "GPTBigCode": GPT,
    "BioGpt": {**SIZES, "intermediate_size": 32, "max_position_embeddings": 40},
    "Llama": {**SIZES, "intermediate_size": 32, "max_position_embeddings": 40},
    "Bloom": {"vocab_size": 64, "n_layer": 1, "n_head": 2, "hidden_size": 16},
}


def build(name):
    import transformers as hf

    if name == "GPT2":
        return hf.GPT2LMHeadModel(hf.GPT2Config(**GPT)).eval()
    config = getattr(hf, f"{name}Config")(**OTHERS[name])
    return getattr(hf, f"{name}ForCausalLM")(config).eval()


@torch.no_grad()
@pytest.mark.language_model
@pytest.mark.parametrize("name", ["GPT2", "OPT", "GPTNeo", "GPTJ", "GPTBigCode", "BioGpt"])
def test_a_position_table_is_a_limit(name):
    model = build(name)
    assert limits_of(model) == Limits(vocabulary=64, positions=40, trained=40)
    model(torch.ones(1, 40, dtype=torch.long))
    with pytest.raises((IndexError, RuntimeError)):
        tokens = torch.ones(1, 41, dtype=torch.long)
        model(tokens, position_ids=torch.arange(41)[None])


@torch.no_grad()
@pytest.mark.language_model
@pytest.mark.parametrize(("name", "trained"), [("Llama", 40), ("Bloom", None)])
def test_positions_that_are_computed_are_no_limit(name, trained):
    model = build(name)
    assert limits_of(model) == Limits(vocabulary=64, positions=None, trained=trained)
    assert model(torch.ones(1, 60, dtype=torch.long)).logits.isfinite().all()
