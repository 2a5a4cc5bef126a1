"""Tiny random bases beside those of `builders.py`: with several classes, and mixtures of experts.

The builders are functions without arguments, by what the base is.
"""

import torch

TEXT = {
    "vocab_size": 257,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "initializer_range": 0.3,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
}
IMAGES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def build_gemma3():
    """A base of texts and images. Its names changed with transformers 4.52."""
    import transformers as hf

    torch.manual_seed(7)
    text = hf.Gemma3TextConfig(**TEXT, query_pre_attn_scalar=4)
    config = hf.Gemma3Config(
        text_config=text.to_dict(), vision_config=IMAGES, mm_tokens_per_image=4
    )
    return hf.Gemma3ForConditionalGeneration(config).eval()


def build_gemma3_text():
    """The same class of texts alone."""
    import transformers as hf

    torch.manual_seed(7)
    return hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**TEXT, query_pre_attn_scalar=4)).eval()


def build_qwen2_vl():
    """A base of texts and images. Its names changed with transformers 4.52."""
    import transformers as hf

    torch.manual_seed(7)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 0]}
    images = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    config = hf.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={**images, "out_hidden_size": 16, "patch_size": 8},
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config).eval()


def _qwen3_5_text_config():
    import transformers as hf

    recurrent = {
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    return hf.Qwen3_5TextConfig(**{**TEXT, **recurrent, "num_hidden_layers": 4})


def build_qwen3_5():
    """The class under which Qwen3.5 is published."""
    import transformers as hf

    torch.manual_seed(7)
    images = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    config = hf.Qwen3_5Config(
        text_config=_qwen3_5_text_config().to_dict(),
        vision_config={**images, "out_hidden_size": 16, "patch_size": 8},
    )
    return hf.Qwen3_5ForConditionalGeneration(config).eval()


def build_qwen3_5_text():
    """The class of texts alone, as which AutoModelForCausalLM loads Qwen3.5."""
    import transformers as hf

    torch.manual_seed(7)
    return hf.Qwen3_5ForCausalLM(_qwen3_5_text_config()).eval()


def build_mixtral():
    """A mixture of 4 experts. Its names changed with transformers 5."""
    import transformers as hf

    torch.manual_seed(7)
    config = hf.MixtralConfig(**TEXT, num_local_experts=4, num_experts_per_tok=2)
    return hf.MixtralForCausalLM(config).eval()


def build_qwen3_moe():
    """A mixture of 4 experts."""
    import transformers as hf

    torch.manual_seed(7)
    config = hf.Qwen3MoeConfig(
        **TEXT, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    )
    return hf.Qwen3MoeForCausalLM(config).eval()


@torch.no_grad()
def logits_of(model):
    """The logits of two rows of tokens."""
    tokens = torch.arange(1, 25).reshape(2, 12)
    return model(input_ids=tokens, use_cache=False).logits


def peft_logits(model, folder):
    """The logits that plain peft gives with an adapter; the model is one to be thrown away."""
    from peft import PeftModel

    return logits_of(PeftModel.from_pretrained(model, folder).eval())


def merged_logits(model, folder):
    """The logits of the base with an adapter, read and added as in a merge with coefficient 1."""
    from sick_adapters import load_experts

    from evox_evogm.problems.adapters.merging import merged
    from evox_evogm.problems.adapters.stacked_modules import stack_experts

    experts = load_experts([folder], model)
    modules = stack_experts(experts, torch.float32, torch.device("cpu"), model)
    with merged(model, modules, torch.ones(1)):
        return logits_of(model)
