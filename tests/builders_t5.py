"""Tiny random encoder-decoders with a tokenizer of T5's kind."""

import string

import torch

# One piece per character; a blank before every word, as in T5.
PIECES = ["<pad>", "</s>", "<unk>", "▁", *string.printable.strip()]


def build_t5_tokenizer():
    """Characters as pieces, and `</s>` behind every text."""
    from transformers import T5Tokenizer

    scores = [0.0, 0.0, 0.0, -2.0] + [-3.0] * (len(PIECES) - 4)
    return T5Tokenizer(vocab=list(zip(PIECES, scores, strict=True)), extra_ids=0)


@torch.no_grad()
def build_t5(seed=3, *, flan=True, **changes):
    """A random T5 with 3 layers in the encoder and 2 in the decoder, in float32.

    :param flan: as FLAN-T5, with gated GELU, an output layer of its own and no scaling; otherwise
        as the first T5.
    """
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    sizes = {"vocab_size": len(PIECES), "d_model": 16, "d_kv": 4, "d_ff": 32, "num_heads": 4}
    sizes |= {"num_layers": 3, "num_decoder_layers": 2, "decoder_start_token_id": 0}
    kind = {"feed_forward_proj": "gated-gelu" if flan else "relu", "tie_word_embeddings": not flan}
    model = T5ForConditionalGeneration(T5Config(**{**sizes, **kind, **changes})).eval()
    if flan:
        model.lm_head.weight = torch.nn.Parameter(0.5 * torch.randn(len(PIECES), 16))
    for name, weight in model.named_parameters():  # so that answers depend on prompts, and end
        if name.endswith(".q.weight"):
            weight *= 8
        elif "EncDecAttention.v" in name or "EncDecAttention.o" in name:
            weight *= 2
    return model.requires_grad_(False)


def save_t5(folder, model):
    """The model as its hub folder has it, with the tokenizer."""
    model.save_pretrained(folder)
    build_t5_tokenizer().save_pretrained(folder)
    return folder
