"""Train the base and the 64 experts of the synthetic suite, which takes five minutes on two cores.

    python -m benchmarks.suites.train_synthetic          # into ~/.cache/evox-evogm/synthetic
    python -m benchmarks.suites.train_synthetic --show   # scores of the base and every expert

Experts differ in rank, alpha, modules and length of training. What is there is not trained again.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch

from benchmarks.suites.answer_loss import answer_loss
from benchmarks.suites.synthetic import (
    FOLDER,
    LETTERS,
    N_EXPERTS,
    OPERATIONS,
    UNSEEN,
    expert_folders,
    make_problem,
    questions,
)
from evox_evogm.problems.inference.language_model import LanguageModel, Request

TARGETS = (
    ["q_proj", "k_proj", "v_proj", "o_proj"],
    ["q_proj", "v_proj"],
    ["gate_proj", "up_proj", "down_proj"],
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
)


def build_tokenizer():
    """One token per character; blanks are none."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<end>", "=", *OPERATIONS, *LETTERS]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    core.normalizer = normalizers.Replace(" ", "")
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


def build_base():
    """A Llama with fresh weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(build_tokenizer()),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def train(
    model: torch.nn.Module,
    tokenizer,
    names: list[str],
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    label: str,
) -> None:
    """AdamW on fresh questions, with a linear decay after a short rise."""
    language_model = LanguageModel(model, tokenizer)
    source = questions(names, "train", random.Random(seed))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, 1 - step / steps)
    )
    start = time.time()
    for step in range(1, steps + 1):
        requests = [tokenize(language_model, *next(source)) for _ in range(batch)]
        loss = answer_loss(model, requests)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == steps:
            seconds = time.time() - start
            print(f"{label}: step {step}/{steps} loss {loss:.3f} {seconds:.0f} s", flush=True)


def tokenize(language_model: LanguageModel, question: str, answer: str) -> Request:
    """Tokens of a question, and of its answer with the end."""
    prompt_tokens, answer_tokens = language_model.request(question, answer)
    return prompt_tokens, (*answer_tokens, language_model.end_token)


def train_base(folder: Path) -> None:
    """Train the base for so short a time that there is something left for experts to learn."""
    singles = list(OPERATIONS)
    pairs = []
    for first in singles:
        pairs += [first + second for second in singles if first + second not in UNSEEN]
    # Half of the questions are of one operation.
    names = singles * (len(pairs) // len(singles)) + pairs
    model, tokenizer = build_base(), build_tokenizer()
    train(model, tokenizer, names, steps=260, batch=192, lr=2e-3, seed=0, label="base")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_expert(index: int, base: torch.nn.Module, tokenizer, folder: Path) -> None:
    """Expert `index` of operation `index` mod 20.

    The later experts of an operation differ in seed, form and training.
    """
    from peft import LoraConfig, get_peft_model

    names = list(OPERATIONS)
    name = names[index % len(names)]
    pairs = []
    for other in names:
        pairs += [pair for pair in (name + other, other + name) if pair not in UNSEEN]
    draw = random.Random(index)
    rank = draw.choice((2, 4, 6, 8))
    config = LoraConfig(
        r=rank,
        lora_alpha=draw.choice((1, 2, 4)) * rank,
        target_modules=TARGETS[index % len(TARGETS)],
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(index)
    wrapped = get_peft_model(base, config)
    train(
        wrapped,
        tokenizer,
        [name] * len(pairs) + pairs,
        steps=draw.choice((40, 80, 120)),
        batch=64,
        lr=5e-3,
        seed=index,
        label=folder.name,
    )
    wrapped.save_pretrained(folder)
    wrapped.unload()
    base.requires_grad_(True)


def build(folder: Path = FOLDER, n: int = N_EXPERTS) -> None:
    """Train what is missing of the base and the first n experts."""
    from transformers import AutoModelForCausalLM

    if not (folder / "base" / "config.json").exists():
        train_base(folder / "base")
    tokenizer = build_tokenizer()
    for index, path in enumerate(expert_folders(n, folder)):
        if not (path / "adapter_model.safetensors").exists():
            model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
            train_expert(index, model, tokenizer, path)


def show(folder: Path) -> None:
    """Print the scores on dev of the base, the average and every single expert."""
    problem = make_problem(N_EXPERTS, folder=folder)
    merges = {
        "base": torch.zeros(N_EXPERTS),
        "average": torch.full((N_EXPERTS,), 1 / N_EXPERTS),
    }
    for expert, one_hot in zip(problem.experts, torch.eye(N_EXPERTS), strict=True):
        merges[expert.name] = one_hot
    scores = problem.score_together(torch.stack(list(merges.values())))
    names = [task.name for task in problem.tasks]
    print("| merge | mean | " + " | ".join(names) + " |\n|" + " --- |" * (len(names) + 2))
    for row, merge in enumerate(merges):
        values = [float(scores[name][row].mean()) for name in names]
        cells = " | ".join(f"{value:.2f}" for value in values)
        print(f"| {merge} | {sum(values) / len(values):.3f} | {cells} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument(
        "--show", action="store_true", help="print scores of the base and the experts"
    )
    arguments = parser.parse_args()
    if arguments.show:
        show(arguments.folder)
        return
    start = time.time()
    build(arguments.folder)
    parameters = sum(weight.numel() for weight in build_base().parameters())
    seconds = round(time.time() - start)
    print(json.dumps({"parameters": parameters, "experts": N_EXPERTS, "seconds": seconds}))


if __name__ == "__main__":
    main()
