"""Train the shipped LoRA experts of SmolLM2-135M-Instruct, each on one source, and write their manifest.

    python benchmarks/train_experts.py --data ../shared/data/swarm_eval

An adapter is kept only if, on 200 unseen test examples of its own source, it beats the base by 20 points of exact match
or 10 points of choice likelihood. Finished experts are skipped, so that an interrupted run goes on. Training minimises
the mean negative log-likelihood of the answer's tokens and the end-of-text token (AdamW, linear decay).
"""

import argparse
import hashlib
import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from answer_loss import answer_loss

from evox_evogm.problems.inference.base_model import SMOLLM2, load_base, weights_sha256
from evox_evogm.problems.inference.language_model import LanguageModel, Request
from evox_evogm.problems.tasks.metrics import METRICS, requests_of
from evox_evogm.problems.tasks.readers import make_example, reasoning_gym_rows, split_of
from evox_evogm.problems.tasks.task import Task

DEMO = Path(__file__).resolve().parent.parent / "evox_evogm" / "demo"
ATTENTION, VALUES, MLP = (
    ["q_proj", "k_proj", "v_proj", "o_proj"],
    ["q_proj", "v_proj"],
    ["gate_proj", "up_proj", "down_proj"],
)
NEEDED = {
    "exact_match": 0.20,
    "choice_likelihood": 0.10,
}  # gain over the base that makes an adapter an expert
UNSEEN = 200  # test examples that decide
EXTRACT = {"dev": 64, "test": 128}  # rows shipped of a source that is a file


@dataclass(frozen=True)
class Source:
    """One expert: what it is trained on and how."""

    name: str
    licence: str  # of the data
    rank: int
    alpha: int
    targets: list[str] = field(default_factory=lambda: ATTENTION)
    metric: str = "exact_match"
    options: dict = field(default_factory=dict)  # of the reasoning-gym data set
    file: bool = False  # a file of the evaluation sets, not a reasoning-gym task
    examples: int = 1200  # at most
    epochs: int = 2
    batch: int = 8  # examples
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
    """Different questions of one split; the splits of every source are disjoint by `split_of`."""
    if not source.file:
        yield from reasoning_gym_rows(source.name, split, seed=source.seed, options=source.options)
        return
    sets = json.loads((data / f"{source.name}.json").read_text())
    seen = set()
    for row in sets["dev"] + sets["test"]:
        if split_of(row["question"]) == split and row["question"] not in seen:
            seen.add(row["question"])
            yield {key: row[key] for key in ("id", "question", "choices", "answer")}


def take_task(source: Source, split: str, count: int, data: Path) -> Task:
    rows = [row for _, row in zip(range(count), rows_of(source, split, data), strict=False)]
    examples = tuple(
        make_example(row, f"{source.name}, {split} {index}", index)
        for index, row in enumerate(rows)
    )
    return Task(source.name, "training", source.metric, examples)


def train(source: Source, model: LanguageModel, requests: list[Request]) -> int:
    """Train the adapter that `model.model` carries; returns the number of steps."""
    weights = [weight for weight in model.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=source.lr, weight_decay=0.0)
    steps = source.epochs * (len(requests) // source.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    order = random.Random(source.seed)
    step, running, start = 0, 0.0, time.time()
    for _ in range(source.epochs):
        # Blocks of ten batches are sorted by length, so that little is padded and the order stays random.
        shuffled = order.sample(requests, len(requests))
        size = 10 * source.batch
        blocks = [
            sorted(shuffled[i : i + size], key=lambda r: len(r[0]))
            for i in range(0, len(requests), size)
        ]
        batches = [
            block[i : i + source.batch]
            for block in blocks
            for i in range(0, len(block), source.batch)
        ]
        order.shuffle(batches)
        for batch in batches[: steps // source.epochs]:
            loss = answer_loss(model.model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step, running = step + 1, running + loss.item()
            if step % 25 == 0:
                print(
                    f"  {source.name} step {step}/{steps} loss {running / 25:.3f} {time.time() - start:.0f} s",
                    flush=True,
                )
                running = 0.0
    return step


def save_float16(peft_model, folder: Path) -> None:
    """Save in PEFT format with float16 tensors, half the size of what is trained."""
    from safetensors.torch import load_file, save_file

    peft_model.save_pretrained(folder)
    path = folder / "adapter_model.safetensors"
    save_file(
        {name: tensor.half() for name, tensor in load_file(path).items()},
        path,
        metadata={"format": "pt"},
    )
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "HuggingFaceTB/SmolLM2-135M-Instruct"
    config["inference_mode"] = True
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").unlink(missing_ok=True)


def make_expert(source: Source, base: LanguageModel, base_hash: str, data: Path, out: Path) -> dict:
    """Train, save and measure one expert; returns its manifest entry."""
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(source.seed)
    start = time.time()
    training, test = (
        take_task(source, "train", source.examples, data),
        take_task(source, "test", UNSEEN, data),
    )
    rules = ["exact_match", "choice_likelihood"] if source.file else ["exact_match"]
    base_scores = {rule: METRICS[rule](test, base).mean().item() for rule in rules}
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
    expert_scores = {rule: METRICS[rule](test, reloaded).mean().item() for rule in rules}
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
        "versions": {
            package: version(package)
            for package in ("torch", "peft", "transformers", "reasoning-gym")
        },
    }


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
            extract = {
                s: [r for _, r in zip(range(n), rows_of(source, s, arguments.data), strict=False)]
                for s, n in EXTRACT.items()
            }
            (arguments.out.parent / "tasks").mkdir(exist_ok=True)
            text = json.dumps(extract, indent=0, ensure_ascii=False)
            (arguments.out.parent / "tasks" / f"{source.name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
