"""Train a T5 and its experts, and merge them by `evogm merge`: LoRA, full, and mixed.

python -m benchmarks.encoder_decoder            # three minutes of one core
python -m benchmarks.encoder_decoder --check    # the same, and all test scores once more
"""

import argparse
import json
import time
from pathlib import Path

import torch
import yaml

from benchmarks.encoder_decoder.check import differing_scores
from benchmarks.encoder_decoder.tasks import TASKS, write_json_lines
from benchmarks.encoder_decoder.train import train_all
from evox_evogm.command import cli

SIZES = {"dev": 50, "test": 200}
STEPS = {"base": 400, "lora": 200, "full": 200}
BUDGET = 60
SETS = {  # the kind of each expert, in the order of the tasks
    "lora": ("lora", "lora", "lora"),
    "full": ("full", "full", "full"),
    "mixed": ("lora", "full", "lora"),
}


def settings_of(kinds: tuple[str, ...], budget: int) -> dict:
    """The settings of a run."""
    tasks = []
    for name in TASKS:
        files = {"json_lines": f"data/{name}_dev.jsonl", "test_file": f"data/{name}_test.jsonl"}
        tasks.append({**files, "name": name, "metric": "exact_match", "max_new_tokens": 8})
    experts = {name: f"{kind}/{name}" for name, kind in zip(TASKS, kinds, strict=True)}
    return {
        "base": "base",
        "experts": experts,
        "budget": budget,
        "dtype": "float32",
        "device": "cpu",
        "tasks": tasks,
    }


def table(result: dict) -> list[str]:
    """The scores of a run as lines of Markdown: the mean over tasks, then each of them."""
    lines = [f"| model | dev | test | {' | '.join(TASKS)} |", "| --- |" + " ---: |" * 5]
    for row in result["scores"]:
        means = [sum(row[split].values()) / len(TASKS) for split in ("dev", "test")]
        by_task = [row["test"][name] for name in TASKS]
        numbers = " | ".join(f"{value:.3f}".removeprefix("0") for value in [*means, *by_task])
        lines.append(f"| {row['name']} ({row['kind']}) | {numbers} |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Train what is not there, merge, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/encoder_decoder"))
    parser.add_argument("--budget", type=int, default=BUDGET)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=json.loads, default=STEPS, help="of base, lora and full")
    parser.add_argument("--check", action="store_true", help="score by plain transformers too")
    args = parser.parse_args(arguments)
    out = args.out
    if not (out / "trained.json").is_file():
        write_json_lines(out / "data", SIZES)
        seconds = train_all(out, args.steps, args.seed)
        (out / "trained.json").write_text(json.dumps(seconds))
    print("seconds of training:", (out / "trained.json").read_text())
    print("threads:", torch.get_num_threads())
    for name, kinds in SETS.items():
        path = out / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings_of(kinds, args.budget)))
        run = out / f"merge_{name}"
        start = time.perf_counter()
        status = cli.main(["merge", str(path), "--out", str(run), "--seed", str(args.seed)])
        seconds = time.perf_counter() - start
        print(f"\n{name}: status {status}, {seconds:.0f} s")
        result = json.loads((run / "result.json").read_text())
        print("\n".join(table(result)))
        if args.check:
            differing, count = differing_scores(out, name)
            print(f"{differing} of {count} test scores differ from plain transformers")


if __name__ == "__main__":
    main()
