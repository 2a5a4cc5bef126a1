"""Train LoRA adapters with plain peft, one for each task.

Half of the questions are plain prompts, the other half are chats. Only answers count in the loss.
The base is bfloat16, the adapters are float32. An adapter that is there is not trained again.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.real_base.tasks import training_task
from benchmarks.suites.train_experts import ATTENTION, MLP, Source, train
from evox_evogm.problems.inference.base_model import load_base
from evox_evogm.problems.inference.language_model import LanguageModel, Request
from evox_evogm.problems.tasks.requests import requests_of

SOME = ["q_proj", "v_proj", "up_proj", "down_proj"]
HOW = {"licence": "Apache-2.0 (reasoning-gym; generated)", "examples": 640, "epochs": 1, "lr": 5e-4}
SOURCES = [
    Source("chain_sum", rank=8, alpha=16, targets=ATTENTION + MLP, seed=1, **HOW),
    Source("spell_backward", rank=16, alpha=32, targets=SOME, seed=2, **HOW),
    Source("gcd", rank=8, alpha=32, targets=SOME, seed=3, **HOW),
]
# Fewer questions, as the base of 1.5 billion weights needs six times as long for each.
FOUR_SOURCES = [
    *(replace(source, examples=160) for source in SOURCES),
    Source(
        "letter_counting", rank=4, alpha=8, targets=ATTENTION, seed=4, **{**HOW, "examples": 160}
    ),
]


def train_adapters(base: Path, out: Path, sources: Sequence[Source] = SOURCES) -> None:
    """Train the adapters that are missing.

    :param base: the folder of the converted model.
    :param out: gets a folder for every adapter.
    :param sources: what each is trained on, and how.
    """
    out.mkdir(parents=True, exist_ok=True)
    missing = [source for source in sources if not (out / source.name).is_dir()]
    if not missing:
        return
    model, tokenizer = load_base(base, dtype=torch.bfloat16, device=torch.device("cpu"))
    for source in missing:
        start = time.perf_counter()
        train_adapter(source, LanguageModel(model, tokenizer), out / source.name)
        print(f"{source.name}: {time.perf_counter() - start:.0f} s", flush=True)


def train_adapter(source: Source, base: LanguageModel, folder: Path) -> None:
    """Train one adapter, and save it as peft does: whole or not at all."""
    from peft import LoraConfig, get_peft_model

    requests = mixed_requests(source, base)
    torch.manual_seed(source.seed)
    config = LoraConfig(
        r=source.rank,
        lora_alpha=source.alpha,
        target_modules=source.targets,
        task_type="CAUSAL_LM",
    )
    bare = base.model
    learner = LanguageModel(get_peft_model(bare, config), base.tokenizer)
    train(source, learner, requests)
    scratch = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    learner.model.save_pretrained(scratch)
    scratch.rename(folder)
    learner.model.unload()
    bare.requires_grad_(False)


def mixed_requests(source: Source, base: LanguageModel) -> list[Request]:
    """Questions with their answers in tokens: every other one is a chat."""
    plain = requests_of(training_task(source.name, source.examples, chat=False), base)
    chats = requests_of(training_task(source.name, source.examples, chat=True), base)
    return plain[::2] + chats[1::2]
