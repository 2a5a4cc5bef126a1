"""Random bases of real shapes, random adapters, and prompts for them: no file is downloaded."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from evox_evogm.problems import Example, Task

RANK, EXPERTS = 16, 10
SHAPES = {  # architecture, and its configuration as on the hub
    "Qwen2.5-0.5B": (
        "Qwen2",
        {
            "vocab_size": 151_936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen2.5-1.5B": (
        "Qwen2",
        {
            "vocab_size": 151_936,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "Llama-3.1-8B": (
        "Llama",
        {
            "vocab_size": 128_256,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "tie_word_embeddings": False,
        },
    ),
}
TINY = {  # the same architectures with two layers
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
END = "<end>"


@dataclass(frozen=True)
class Regime:
    """What a task asks of a base.

    :param examples: S.
    :param tokens: C, of each prompt.
    :param new_tokens: of each answer that is generated; 0 where a right answer is scored.
    """

    examples: int
    tokens: int
    new_tokens: int = 0

    def task(self, name: str, vocabulary: int) -> Task:
        """A task of random words, of one token each. No generated answer ends early.

        :param vocabulary: of the base.
        """
        generator = torch.Generator().manual_seed(1)
        shape = self.examples, self.tokens
        numbers = torch.randint(1, vocabulary, shape, generator=generator)
        examples = []
        for index, row in enumerate(numbers.tolist()):
            prompt = " ".join(f"w{number}" for number in row)
            examples.append(Example(str(index), prompt, "w1 w2 w3"))
        if not self.new_tokens:
            return Task(name, "1", "gold_log_probability", tuple(examples))
        # What stands in the last ten words is known at the end only.
        settings = {"match": "last_10_words", "max_new_tokens": self.new_tokens}
        return Task(name, "1", "exact_match", tuple(examples), **settings)


REGIMES = {
    "short": Regime(12, 40),
    "long": Regime(16, 512),
    "generated 10": Regime(32, 100, 10),
    "generated 200": Regime(32, 100, 200),
}
TINY_REGIMES = {
    "short": Regime(4, 6),
    "long": Regime(4, 20),
    "generated 10": Regime(4, 8, 2),
    "generated 200": Regime(4, 8, 4),
}


def build_config(name: str, *, tiny: bool):
    """The configuration of a base, by its name in `SHAPES`."""
    import transformers

    architecture, shape = SHAPES[name]
    if tiny:
        shape = {**shape, **TINY}
    config = getattr(transformers, f"{architecture}Config")(**shape)
    config.eos_token_id = config.bos_token_id = config.pad_token_id = 0
    return config


def build_model(config, dtype: torch.dtype, device: torch.device, std: float = 0.02):
    """A base with random weights, made where it will be.

    :param std: of the weights.
    """
    from transformers import AutoModelForCausalLM

    torch.manual_seed(7)
    config.initializer_range = std
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = None  # no text ends early
    return model.requires_grad_(False).eval()


def build_tokenizer(vocabulary: int):
    """A token for each of the words w1, w2, ..., and the end of text, which no model writes here.

    :param vocabulary: the size of the base's. The end is the token behind it.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(vocabulary)}
    core = Tokenizer(models.WordLevel(words, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="w0", pad_token="w0")
    tokenizer.add_special_tokens({"eos_token": END})
    return tokenizer


def write_adapters(
    model: torch.nn.Module, folder: Path, count: int = EXPERTS, rank: int = RANK
) -> list[Path]:
    """Random adapters on every linear layer but the last, as peft writes them.

    :return: their folders.
    """
    output = model.get_output_embeddings()
    linear = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not output:
            linear[name] = module
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({name.split(".")[-1] for name in linear}),
    }
    folders = []
    for index in range(count):
        generator = torch.Generator(model.device).manual_seed(index)
        tensors: dict[str, torch.Tensor] = {}
        for name, module in linear.items():
            a, b = (rank, module.in_features), (module.out_features, rank)
            # A B of the size of a trained adapter: about a hundredth of the weight.
            scale = 0.1 * float(module.weight.float().std()) / rank**0.5
            key = f"base_model.model.{name}"
            tensors[f"{key}.lora_A.weight"] = _random(a, 1.0, model, generator)
            tensors[f"{key}.lora_B.weight"] = _random(b, scale, model, generator)
        expert = folder / f"expert{index}"
        expert.mkdir(parents=True)
        save_file(tensors, expert / "adapter_model.safetensors")
        (expert / "adapter_config.json").write_text(json.dumps(config))
        folders.append(expert)
    return folders


def _random(
    shape: Sequence[int], std: float, model: torch.nn.Module, generator: torch.Generator
) -> torch.Tensor:
    numbers = torch.randn(*shape, generator=generator, device=model.device)
    return (std * numbers).to(model.dtype).cpu()


def random_population(count: int, n: int) -> torch.Tensor:
    """P merges `(P, n)` in which every expert takes part."""
    generator = torch.Generator().manual_seed(2)
    return (0.1 + torch.rand(count, n, generator=generator)) / n
