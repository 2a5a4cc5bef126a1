"""Train the shipped LoRA experts of SmolLM2-135M-Instruct, each on one source.

    python -m benchmarks.suites.train_experts --data ../shared/data/swarm_eval

An adapter is an expert only if it beats the base on 200 unseen test examples of its own source, by
20 points of exact match or 10 points of choice likelihood. The manifest says so. Experts that are
in the manifest are skipped, so that an interrupted run goes on. Training minimises the mean
negative log-likelihood of the answer's tokens and the end-of-text token (AdamW, linear decay).
"""

import argparse
import hashlib
import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import torch

from benchmarks.suites.answer_loss import answer_loss
from evox_evogm.problems.inference.base_model import SMOLLM2, load_base, weights_sha256
from evox_evogm.problems.inference.language_model import LanguageModel, Request
from evox_evogm.problems.tasks.metrics import METRICS
from evox_evogm.problems.tasks.readers import make_example, reasoning_gym_rows, split_of
from evox_evogm.problems.tasks.requests import requests_of
from evox_evogm.problems.tasks.task import Task

DEMO = Path(__file__).resolve().parents[2] / "evox_evogm" / "demo"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
VALUES = ["q_proj", "v_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
# The gain over the base that makes an adapter an expert, by metric.
NEEDED = {"exact_match": 0.20, "choice_likelihood": 0.10}
UNSEEN = 200  # test examples that decide
EXTRACT = {"dev": 64, "test": 128}  # rows shipped of a source that is a file
PACKAGES = ("torch", "peft", "transformers", "reasoning-gym")


@dataclass(frozen=True)
class Source:
    """One expert: what it is trained on and how."""

    name: str
    licence: str
    """Of the data."""
    rank: int
    alpha: int
    targets: list[str] = field(default_factory=lambda: ATTENTION)
    metric: str = "exact_match"
    options: dict = field(default_factory=dict)
    """Of the reasoning-gym data set."""
    file: bool = False
    """Whether it is a file of the evaluation sets, not a reasoning-gym task."""
    examples: int = 1200
    """At most."""
    epochs: int = 2
    batch: int = 8
    """Examples."""
    lr: float = 1e-3
    seed: int = 1


GYM = "Apache-2.0 (reasoning-gym; generated)"
AS_ON_CARD = " as its card is remembered; not verified offline"
SOURCES = [
    Source("syllogism", GYM, rank=8, alpha=16, examples=800),
    Source(
        "normad_value",
        "CC-BY-4.0," + AS_ON_CARD,
        rank=8,
        alpha=16,
        metric="choice_likelihood",
        file=True,
        examples=700,
    ),
    Source("family_relationships", GYM, rank=4, alpha=8, examples=1000),
    Source(
        "medmcqa",
        "Apache-2.0," + AS_ON_CARD,
        rank=2,
        alpha=8,
        targets=VALUES,
        file=True,
        examples=500,
    ),
    Source("number_format", GYM, rank=8, alpha=32, targets=VALUES, examples=800),
    Source(
        "normad_country",
        "CC-BY-4.0," + AS_ON_CARD,
        rank=6,
        alpha=12,
        metric="choice_likelihood",
        file=True,
        examples=700,
    ),
    Source(
        "chain_sum",
        GYM,
        rank=4,
        alpha=8,
        targets=MLP,
        options={"min_terms": 2, "max_terms": 3, "max_digits": 1},
    ),
    Source(
        "gcd", GYM, rank=5, alpha=16, options={"max_numbers": 2, "max_value": 60}, examples=1500
    ),
]


def rows_of(source: Source, split: str, data: Path) -> Iterator[dict]:
    """Different questions of one split; `split_of` keeps the splits of every source apart."""
    if not source.file:
        yield from reasoning_gym_rows(source.name, split, seed=source.seed, options=source.options)
        return
    sets = json.loads((data / f"{source.name}.json").read_text())
    seen = set()
    for row in sets["dev"] + sets["test"]:
        question = row["question"]
        if split_of(question) == split and question not in seen:
            seen.add(question)
            yield {key: row[key] for key in ("id", "question", "choices", "answer")}


def take_task(source: Source, split: str, count: int, data: Path) -> Task:
    """The first `count` questions of a split, or as many as there are."""
    examples = []
    for index, row in enumerate(islice(rows_of(source, split, data), count)):
        examples.append(make_example(row, f"{source.name}, {split} {index}", index))
    return Task(source.name, "training", source.metric, tuple(examples))


def split_list(values: list, size: int) -> list[list]:
    """Consecutive parts of at most `size` values."""
    return [values[start : start + size] for start in range(0, len(values), size)]


def draw_batches(
    requests: list[Request], batch: int, generator: random.Random
) -> list[list[Request]]:
    """The batches of an epoch.

    Blocks of ten batches are sorted by length: little is padded, and the order stays random.
    """
    shuffled = generator.sample(requests, len(requests))
    batches = []
    for block in split_list(shuffled, 10 * batch):
        by_length = sorted(block, key=lambda request: len(request[0]))
        batches += split_list(by_length, batch)
    generator.shuffle(batches)
    return batches


def train(source: Source, model: LanguageModel, requests: list[Request]) -> int:
    """Train the adapter that `model.model` carries; returns the number of steps."""
    weights = [weight for weight in model.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=source.lr, weight_decay=0.0)
    steps_per_epoch = len(requests) // source.batch
    steps = source.epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    generator = random.Random(source.seed)
    step, recent, start = 0, 0.0, time.time()
    for _ in range(source.epochs):
        for batch in draw_batches(requests, source.batch, generator)[:steps_per_epoch]:
            loss = answer_loss(model.model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step += 1
            recent += loss.item()
            if step % 25 == 0:
                seconds = time.time() - start
                progress = f"step {step}/{steps} loss {recent / 25:.3f} {seconds:.0f} s"
                print(f"  {source.name} {progress}", flush=True)
                recent = 0.0
    return step


def save_float16(peft_model, folder: Path) -> None:
    """Save in PEFT format with float16 tensors, half the size of what is trained."""
    from safetensors.torch import load_file, save_file

    peft_model.save_pretrained(folder)
    path = folder / "adapter_model.safetensors"
    tensors = {name: tensor.half() for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    config_path = folder / "adapter_config.json"
    config = json.loads(config_path.read_text())
    config["base_model_name_or_path"] = "HuggingFaceTB/SmolLM2-135M-Instruct"
    config["inference_mode"] = True
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").unlink(missing_ok=True)


def mean_scores(task: Task, model: LanguageModel, metrics: list[str]) -> dict[str, float]:
    """The mean score of a task by several metrics."""
    return {metric: METRICS[metric](task, model).mean().item() for metric in metrics}


def make_expert(source: Source, base: LanguageModel, base_hash: str, data: Path, out: Path) -> dict:
    """Train, save and measure one expert; returns its manifest entry."""
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(source.seed)
    start = time.time()
    training = take_task(source, "train", source.examples, data)
    test = take_task(source, "test", UNSEEN, data)
    metrics = ["exact_match", "choice_likelihood"] if source.file else ["exact_match"]
    base_scores = mean_scores(test, base, metrics)
    print(source.name, "base", base_scores, flush=True)
    config = LoraConfig(
        r=source.rank,
        lora_alpha=source.alpha,
        target_modules=source.targets,
        task_type="CAUSAL_LM",
    )
    bare = base.model
    learner = LanguageModel(get_peft_model(bare, config), base.tokenizer)
    steps = train(source, learner, requests_of(training, base))
    folder = out / source.name
    save_float16(learner.model, folder)
    learner.model.unload()
    reloaded = LanguageModel(PeftModel.from_pretrained(bare, folder).eval(), base.tokenizer)
    expert_scores = mean_scores(test, reloaded, metrics)
    reloaded.model.unload()
    bare.requires_grad_(False)
    gain = expert_scores[source.metric] - base_scores[source.metric]
    print(source.name, "expert", expert_scores, f"gain {gain:+.3f} by {source.metric}", flush=True)
    return {
        **asdict(source),
        "train_examples": len(training.examples),
        "steps": steps,
        "test_examples": len(test.examples),
        "base_scores": base_scores,
        "expert_scores": expert_scores,
        "gain": gain,
        "is_expert": gain >= NEEDED[source.metric] and len(test.examples) >= 100,
        "seconds": round(time.time() - start),
        "base_sha256": base_hash,
        "sha256": hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def write_extract(source: Source, data: Path, folder: Path) -> None:
    """Write the dev and test rows that are shipped beside the expert."""
    extract = {}
    for split, count in EXTRACT.items():
        extract[split] = list(islice(rows_of(source, split, data), count))
    folder.mkdir(exist_ok=True)
    text = json.dumps(extract, indent=0, ensure_ascii=False)
    (folder / f"{source.name}.json").write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of the evaluation sets (swarm_eval)"
    )
    parser.add_argument(
        "--out", type=Path, default=DEMO / "experts", help="where adapters and manifest.json go"
    )
    parser.add_argument("--only", nargs="*", help="names of the sources to train; all by default")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else {}
    model, tokenizer = load_base(SMOLLM2, dtype=torch.bfloat16, device=torch.device("cpu"))
    base, base_hash = LanguageModel(model, tokenizer), weights_sha256(model)
    for source in SOURCES:
        if source.name in manifest or (arguments.only and source.name not in arguments.only):
            continue
        manifest[source.name] = make_expert(source, base, base_hash, arguments.data, arguments.out)
        path.write_text(json.dumps(manifest, indent=2) + "\n")
        if source.file:
            write_extract(source, arguments.data, arguments.out.parent / "tasks")


if __name__ == "__main__":
    main()
