"""Tiny random bases of the architectures that transformers has, and random adapters of them.

The sizes that most architectures name alike stand in `SIZES`; `ARCHITECTURES` holds what else each
needs, and what the probe is expected to switch off.

Of what `AutoModelForCausalLM` has, these are left out:

- encoders, which are refused (`test_probe.py`), and decoders of encoder-decoders;
- `blt`, `cpmant`, `deepseek_v32`, `glm_moe_dsa`, `gemma4_text`, `kolibri1` and others whose sizes
  cannot all be made tiny;
- bases of audio and images of which the classes above are the texts.

All others run on the CPU without compiled kernels.
"""

from dataclasses import dataclass, field, fields
from typing import Any

import torch

CHARACTERS = ["\n", *map(chr, range(32, 127))]
SIZES = {
    "vocab_size": 1 + len(CHARACTERS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    # of mixtures of experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    # of windows and recurrent layers
    "sliding_window": 24,
    "attention_window_size": 24,
    "attention_hidden_size": 32,
    "state_size": 8,
    "time_step_rank": 4,
    # of those that have other names for it
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "init_std": 0.3,
}


@dataclass(frozen=True)
class Architecture:
    """A base and its adapters.

    :param kind: the model type.
    :param changes: settings beside `SIZES`; None takes one of them out.
    :param without: the last parts of the names of projections that adapters leave alone.
    :param parameters: parameters of mixtures of experts that both adapters change.
    :param off: what the probe is expected to switch off.
    :param seed: of the weights.
    """

    kind: str
    changes: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    seed: int = 7


NO_CACHE = ("share_prefixes", "drop_rows", "pad_cached_rows", "cache")
NO_PADDING_INSIDE = ("pad_after_prefix",)
# Latent attention, as in DeepSeek. The rotary part has a head dimension of its own.
LATENT = {
    "head_dim": None,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
GROUPS = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
WINDOW_FIRST = {"layer_types": ["sliding_attention", "full_attention"]}
RECURRENT_FIRST = {"layer_types": ["linear_attention", "full_attention"]}
GATED_DELTA = {
    **RECURRENT_FIRST,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
STATE_SPACE = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
NOT_OF_MAMBA = ("out_proj", "dt_proj")  # the first is refused by peft, the second has no effect
EXPERT_PARAMETERS = ("experts.gate_up_proj", "experts.down_proj")
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 48}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 48,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 48,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}

# By name. Those without changes have the name of their model type.
ARCHITECTURES: dict[str, Architecture] = {}
for _kind in (
    # attention over all tokens
    *(
        "llama",
        "qwen2",
        "qwen3",
        "gpt2",
        "gpt-sw3",
        "gpt_bigcode",
        "gpt_neox",
        "opt",
        "phi",
        "phi3",
    ),
    *("gemma", "vaultgemma", "stablelm", "olmo", "olmo2", "granite", "helium"),
    *("glm", "glm4", "nemotron", "persimmon", "biogpt", "xglm", "ernie4_5", "seed_oss"),
    *("hunyuan_v1_dense", "ministral3", "arcee", "apertus", "bitnet", "diffllama", "doge", "jais2"),
    *("nanochat", "hyperclovax", "internlm3", "iquestcoder", "gpt_neox_japanese"),
    *("ctrl", "bloom", "mpt"),
    # sliding windows
    *("mistral", "ministral", "gemma2", "gemma3_text", "starcoder2", "olmo3", "exaone4"),
    *("cwm", "granite_swa", "modernbert-decoder"),
    # mixtures of experts
    *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "flex_olmo", "granitemoe", "granitemoeshared"),
    *("granitemoe_swa", "gpt_oss", "jetmoe", "ernie4_5_moe", "glm4_moe"),
    *("hunyuan_v1_moe", "minimax_m2", "solar_open", "exaone_moe", "hy_v3", "aria_text"),
    *("mellum", "mimo_v2_flash"),
):
    ARCHITECTURES[_kind] = Architecture(_kind)
ARCHITECTURES |= {
    "gptj": Architecture("gptj", {"rotary_dim": 8}),
    "codegen": Architecture("codegen", {"rotary_dim": 8}),
    "gpt_neo": Architecture(
        "gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 24}
    ),
    "falcon": Architecture("falcon"),
    "falcon with ALiBi": Architecture("falcon", {"alibi": True}),
    "minicpm3": Architecture("minicpm3", LATENT),
    "youtu": Architecture("youtu", LATENT),
    "cohere": Architecture("cohere", {"logit_scale": 1.0}),
    "cohere2": Architecture("cohere2", {"logit_scale": 1.0, **WINDOW_FIRST}),
    "cohere2_moe": Architecture("cohere2_moe", {"logit_scale": 1.0}),
    # peft does not load what it saved of the shared experts of Laguna
    "laguna": Architecture("laguna", without=("gate_proj", "up_proj", "down_proj")),
    "smollm3": Architecture("smollm3", seed=8),
    "hrm_text": Architecture("hrm_text", {"initializer_range": 0.05}),  # repeats its layers
    "openai-gpt": Architecture("openai-gpt", off=(*NO_CACHE,)),
    "afmoe": Architecture("afmoe", without=("gate",)),
    "phimoe": Architecture("phimoe", without=("router",)),
    "llama4_text": Architecture("llama4_text", without=("router",)),
    # of texts and images
    "gemma3": Architecture(
        "gemma3",
        {"text_config": WINDOW_FIRST, "vision_config": VISION, "mm_tokens_per_image": 4},
    ),
    "qwen2_5_vl": Architecture(
        "qwen2_5_vl",
        {
            "text_config": {
                "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
            },
            "vision_config": {
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": 32,
                "patch_size": 8,
            },
        },
    ),
    # RoPE
    "llama, dynamic RoPE": Architecture(
        "llama",
        {"max_position_embeddings": 48, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0}},
    ),
    "llama, llama3 RoPE": Architecture("llama", {"rope_parameters": LLAMA3}),
    "llama, linear RoPE": Architecture(
        "llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}
    ),
    "qwen2, YaRN": Architecture("qwen2", {"rope_parameters": YARN}),
    "phi3, LongRoPE": Architecture(
        "phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 48}
    ),
    # mixtures of experts
    "deepseek_v2": Architecture("deepseek_v2", {**LATENT, **GROUPS}, seed=8),
    "deepseek_v3": Architecture("deepseek_v3", {**LATENT, **GROUPS}),
    "glm4_moe_lite": Architecture("glm4_moe_lite", {**LATENT, **GROUPS}),
    "dots1": Architecture("dots1", {**GROUPS, "n_shared_experts": 1, **WINDOW_FIRST}),
    "dbrx": Architecture(
        "dbrx",
        {
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "mixtral, parameters": Architecture("mixtral", parameters=EXPERT_PARAMETERS),
    "qwen3_moe, parameters": Architecture("qwen3_moe", parameters=EXPERT_PARAMETERS),
    "gpt_oss, parameters": Architecture("gpt_oss", parameters=EXPERT_PARAMETERS),
    "granitemoe, parameters": Architecture("granitemoe", parameters=EXPERT_PARAMETERS),
    "llama4_text, parameters": Architecture(
        "llama4_text",
        without=("router",),
        parameters=EXPERT_PARAMETERS,
        off=(
            "mix_candidates",
            "share_layers",
        ),  # its experts see all rows, one expert after another
    ),
    # recurrent layers, and such with attention
    "rwkv": Architecture("rwkv", off=(*NO_CACHE, "pad_rows"), seed=8),
    "xlstm": Architecture("xlstm", off=(*NO_CACHE, "pad_rows")),
    "mamba": Architecture("mamba", without=NOT_OF_MAMBA),
    "falcon_mamba": Architecture("falcon_mamba", without=NOT_OF_MAMBA),
    "qwen3_5_text": Architecture("qwen3_5_text", GATED_DELTA, off=NO_PADDING_INSIDE),
    "qwen3_5_moe_text": Architecture("qwen3_5_moe_text", GATED_DELTA, off=NO_PADDING_INSIDE),
    "qwen3_next": Architecture("qwen3_next", GATED_DELTA, off=NO_PADDING_INSIDE),
    "olmo_hybrid": Architecture("olmo_hybrid", GATED_DELTA, off=NO_PADDING_INSIDE),
    "kimi_linear": Architecture(
        "kimi_linear",
        {
            **LATENT,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            **RECURRENT_FIRST,
            "mlp_layer_types": ["dense", "sparse"],
        },
        off=NO_PADDING_INSIDE,
    ),
    "minimax": Architecture("minimax", {**RECURRENT_FIRST, "block_size": 16}, off=NO_CACHE),
    "lfm2": Architecture(
        "lfm2", {"layer_types": ["conv", "full_attention"]}, off=NO_PADDING_INSIDE
    ),
    "lfm2_moe": Architecture(
        "lfm2_moe",
        {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
        off=NO_PADDING_INSIDE,
    ),
    "lfm3": Architecture("lfm3", {"layer_types": ["conv", "sliding_attention"]}),
    "granitemoehybrid": Architecture(
        "granitemoehybrid", {**STATE_SPACE, **RECURRENT_FIRST}, off=NO_PADDING_INSIDE
    ),
    "bamba": Architecture(
        "bamba", {**STATE_SPACE, "attn_layer_indices": [1]}, off=NO_PADDING_INSIDE
    ),
    "falcon_h1": Architecture(
        "falcon_h1", {**STATE_SPACE, "mamba_d_ssm": 64}, without=NOT_OF_MAMBA, off=NO_PADDING_INSIDE
    ),
    "jamba": Architecture(
        "jamba",
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
        off=("share_prefixes",),
        without=("dt_proj",),  # its weight is read without a pass, so that peft has no effect on it
    ),
    "nemotron_h": Architecture(
        "nemotron_h",
        {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 16,
            "moe_shared_expert_intermediate_size": 16,
        },
        without=NOT_OF_MAMBA,
    ),
    "mamba2": Architecture(
        "mamba2",
        without=NOT_OF_MAMBA,
        changes={"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 16},
    ),
    "zamba": Architecture(
        "zamba",
        {
            "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
            "num_hidden_layers": 4,
            "attention_hidden_size": 64,
            "attention_head_dim": 16,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
        off=("share_prefixes",),
    ),
    "zamba2": Architecture(
        "zamba2",
        {
            "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
            "num_hidden_layers": 4,
            "attention_head_dim": None,
            "mamba_d_state": 8,
            "n_mamba_heads": 4,
            "chunk_size": 16,
            "adapter_rank": 8,
        },
        off=NO_CACHE,
    ),
    "recurrent_gemma": Architecture(
        "recurrent_gemma",
        {"num_hidden_layers": 3, "lru_width": 32},
        off=("share_prefixes", "drop_rows", "pad_rows", "pad_cached_rows", "cache"),
    ),
}


END_TOKENS = [0, *range(5, 97, 12)]  # many, so that some texts end early


def build(architecture: Architecture):
    """The random base, in float32."""
    import transformers as hf

    torch.manual_seed(architecture.seed)
    config_class = hf.CONFIG_MAPPING[architecture.kind]
    config = config_class(**settings_of(config_class, architecture.changes))
    load = hf.AutoModelForCausalLM
    if config_class not in hf.MODEL_FOR_CAUSAL_LM_MAPPING:
        load = hf.AutoModelForImageTextToText
    model = load.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = END_TOKENS
    return model.eval()


def settings_of(config_class, changes: dict[str, Any]) -> dict[str, Any]:
    """The settings of a base, or of the texts inside it."""
    known = {one.name for one in fields(config_class)}
    settings = {}
    for name, value in SIZES.items():
        name = config_class.attribute_map.get(name, name)
        if name in known:
            settings[name] = value
    settings |= changes
    if "text_config" in changes:
        text_class = config_class.sub_configs["text_config"]
        settings["text_config"] = settings_of(text_class, changes["text_config"])
    return {name: value for name, value in settings.items() if value is not None}


def build_character_tokenizer():
    """One token a character, and an end-of-text token."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(["<end>", *CHARACTERS])}
    core = Tokenizer(models.BPE(vocabulary, merges=[]))
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", clean_up_tokenization_spaces=False
    )


def write_adapters(architecture: Architecture, model, folder):
    """The folders of two random adapters, of other ranks and other modules."""
    first, second = targets_of(architecture, model)
    settings = [
        {"r": 4, "lora_alpha": 8, "target_modules": first},
        {"r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": second},
    ]
    folders = []
    for seed, own in enumerate(settings):
        parameters = list(architecture.parameters) or None
        folders.append(folder / f"adapter{seed}")
        write_adapter(model, folders[-1], seed, target_parameters=parameters, **own)
    return folders


def write_adapter(model, folder, seed, **settings):
    """An adapter with random factors as peft saves it; the model stays as it is."""
    import copy

    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", **settings)
    wrapped = get_peft_model(copy.deepcopy(model), config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3, generator=generator)
    wrapped.save_pretrained(folder)


def targets_of(architecture: Architecture, model):
    """The modules of two adapters: all projections, and every other one with the vocabulary.

    peft refuses one half of what mixtures of experts keep in `gate_up_proj`, so the second adapter
    leaves both halves alone where that may happen.
    """
    from transformers.pytorch_utils import Conv1D

    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    fused = any(name.endswith("gate_up_proj") for name, _ in model.named_parameters())
    names, some, ends = [], [], []
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if module is output:
            if output.weight is not embedding.weight:
                ends.append(name)
        elif module is embedding:
            if type(module) is torch.nn.Embedding and not (
                fused and output.weight is module.weight
            ):
                ends.append(name)
        elif type(module) in (torch.nn.Linear, Conv1D) and last not in architecture.without:
            names.append(name)
            if not (fused and last in ("gate_proj", "up_proj", "w1", "w3")):
                some.append(name)
    return (names if architecture.without else "all-linear"), some[::2] + ends
