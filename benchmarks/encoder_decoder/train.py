"""Train a small T5 from scratch, and experts of it: by LoRA with peft, and in full."""

import copy
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.encoder_decoder.tasks import LETTERS, TASKS, questions

PIECES = ["<pad>", "</s>", "<unk>", "▁", *LETTERS, *"klmnopqrstuvwxyz0123456789"]
SIZES = {"d_model": 64, "d_kv": 16, "d_ff": 192, "num_heads": 4, "num_layers": 2}
BATCH = 64
TARGETS = ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]
RANK = 8
Model = Any  # transformers and peft declare few of the members that training needs


def make_tokenizer():
    """One piece per character, a blank before every word, and `</s>` behind every text."""
    from transformers import T5Tokenizer

    scores = [0.0, 0.0, 0.0, -2.0] + [-3.0] * (len(PIECES) - 4)
    return T5Tokenizer(vocab=list(zip(PIECES, scores, strict=True)), extra_ids=0)


def make_base(seed: int) -> Model:
    """A T5 as FLAN-T5 is built, with random weights."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(PIECES),
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        dropout_rate=0.0,
        **SIZES,
    )
    return T5ForConditionalGeneration(config)


def train(model: Model, tokenizer, tasks: Sequence[str], steps: int, lr: float, seed: int) -> float:
    """Train the weights that learn, on batches of all tasks alike; the seconds that it took.

    :param steps: batches of `BATCH` questions, none of which is in dev or test.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    streams = [questions(task, "train", seed) for task in tasks]
    model.train()
    start = time.perf_counter()
    for _ in range(steps):
        rows = [next(stream) for stream in itertools.islice(itertools.cycle(streams), BATCH)]
        given = tokenizer([prompt for prompt, _ in rows], padding=True, return_tensors="pt")
        labels = tokenizer(
            text_target=[answer for _, answer in rows], padding=True, return_tensors="pt"
        ).input_ids
        labels[labels == tokenizer.pad_token_id] = -100
        loss = model(**given, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        rate.step()
    model.eval()
    return time.perf_counter() - start


def train_all(folder: Path, steps: dict[str, int], seed: int) -> dict[str, float]:
    """Train base and experts, and save them under `base`, `lora` and `full`.

    :param steps: of `base`, `lora` and `full`.
    :return: the seconds of each part.
    """
    from peft import LoraConfig, get_peft_model

    tokenizer, base = make_tokenizer(), make_base(seed)
    seconds = {"base": train(base, tokenizer, list(TASKS), steps["base"], 3e-3, seed)}
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    for kind in ("lora", "full"):
        seconds[kind] = 0.0
        for number, task in enumerate(TASKS):
            torch.manual_seed(seed + number)
            model = copy.deepcopy(base)
            if kind == "lora":
                config = LoraConfig(
                    r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="SEQ_2_SEQ_LM"
                )
                model = get_peft_model(model, config)
                model.peft_config["default"].base_model_name_or_path = "t5-from-scratch"
            rate = 3e-3 if kind == "lora" else 1e-3
            seconds[kind] += train(model, tokenizer, [task], steps[kind], rate, seed + 1)
            model.save_pretrained(folder / kind / task)
    return seconds
