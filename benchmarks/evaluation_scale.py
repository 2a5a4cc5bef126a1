"""How does the cost of evaluating a population grow with P, n, r, tokens and width, and how does its memory?

Random Llama models of eight layers with random adapters on all linear layers. One quantity varies at a time around P = 20,
n = 8 experts of rank 8, 512 prompt tokens per candidate and width 512; both paths, interleaved repeats, medians.

    python benchmarks/evaluation_scale.py cost      # table, and costs.csv and costs.png in runs/evaluation_scale
    python benchmarks/evaluation_scale.py memory    # peak memory of P = 1 and P = 64, each in a process of its own
"""

import argparse
import csv
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from evox_evogm.problems import Example, LoRAMergeProblem, Task

LAYERS, PROMPT = 8, 64
MODES = ("unmerged", "merged")


@dataclass(frozen=True)
class Case:
    P: int = 20
    n: int = 8
    r: int = 8
    tokens: int = 512
    width: int = 512


VARIED = {
    "P": (1, 4, 16, 64),
    "n": (2, 8, 32, 64),
    "r": (4, 16, 64),
    "tokens": (64, 512, 2048, 8192),
    "width": (256, 512, 1024, 2048),
}


def build_tokenizer():
    """One token per byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(
        models.BPE({token: index for index, token in enumerate(["<end>", *alphabet])}, merges=[])
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


def build_model(width: int):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=width,
        intermediate_size=int(2.75 * width),
        num_hidden_layers=LAYERS,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def write_adapters(model, n: int, r: int, folder: Path) -> list[Path]:
    """n random adapters of rank r on every linear layer but the last."""
    output = model.get_output_embeddings()
    linear = {
        k: m for k, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not output
    }
    folders = []
    for index in range(n):
        tensors = {}
        for name, module in linear.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = (
                torch.randn(r, module.in_features) / 30
            )
            tensors[f"base_model.model.{name}.lora_B.weight"] = (
                torch.randn(module.out_features, r) / 30
            )
        folders.append(folder / f"expert{index}")
        folders[-1].mkdir()
        save_file(tensors, folders[-1] / "adapter_model.safetensors")
        config = {
            "peft_type": "LORA",
            "r": r,
            "lora_alpha": r,
            "target_modules": sorted({k.split(".")[-1] for k in linear}),
        }
        (folders[-1] / "adapter_config.json").write_text(json.dumps(config))
    return folders


def make_problem(case: Case, path: str, **settings) -> LoRAMergeProblem:
    generator = torch.Generator().manual_seed(1)
    letters = torch.randint(97, 123, (case.tokens // PROMPT, PROMPT), generator=generator)
    prompts = ["".join(map(chr, row)) for row in letters.tolist()]
    examples = tuple(Example(str(index), prompt, "yes") for index, prompt in enumerate(prompts))
    task = Task("random", "1", "gold_log_probability", examples)
    model = build_model(case.width)
    with tempfile.TemporaryDirectory() as folder:
        experts = write_adapters(model, case.n, case.r, Path(folder))
        return LoRAMergeProblem(
            model, experts, [task], tokenizer=build_tokenizer(), mode=path, **settings
        )


def population(case: Case) -> torch.Tensor:
    return torch.rand(case.P, case.n, generator=torch.Generator().manual_seed(2)) / case.n


def cost(folder: Path, repeats: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    print("| varied | value | unmerged, ms per candidate | merged |\n| --- | ---: | ---: | ---: |")
    for name, values in VARIED.items():
        for value in values:
            case = replace(Case(), **{name: value})
            problems = {path: make_problem(case, path) for path in MODES}
            pop, times = population(case), {path: [] for path in MODES}
            for problem in problems.values():
                problem.score_together(pop[:2])
            for _ in range(repeats):
                for path, problem in problems.items():
                    start = time.perf_counter()
                    problem.score_together(pop)
                    times[path].append(1e3 * (time.perf_counter() - start) / case.P)
            medians = [statistics.median(times[path]) for path in MODES]
            rows.append([name, value, *(f"{ms:.2f}" for ms in medians)])
            print("| " + " | ".join(map(str, rows[-1])) + " |", flush=True)
    with (folder / "costs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["varied", "value", *(f"{path} ms per candidate" for path in MODES)], *rows]
        )
    plot(rows, folder / "costs.png")


def plot(rows: list[list], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(VARIED), figsize=(4 * len(VARIED), 3.5))
    for axis, name in zip(axes, VARIED, strict=True):
        mine = [row for row in rows if row[0] == name]
        for column, label in enumerate(MODES, 2):
            axis.plot(
                [row[1] for row in mine],
                [float(row[column]) for row in mine],
                marker="o",
                label=label,
            )
        axis.set(xscale="log", yscale="log", xlabel=name, ylabel="ms per candidate")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def peak(case: Case, path: str, max_memory: int) -> None:
    """Print the peak memory of this process before and after an evaluation, in MiB."""
    problem = make_problem(case, path, max_memory=max_memory, candidates_at_once=case.P)
    problem.score_together(population(case)[:1], [problem.tasks[0].take(1)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    problem.evaluate(population(case))
    print(json.dumps([before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def memory() -> None:
    print(
        "| path | max_memory, MiB | P | peak before, MiB | peak after | grown by |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for path in MODES:
        for limit in (64, 2048):
            for P in (1, 64):
                arguments = [
                    "peak",
                    "--path",
                    path,
                    "--candidates",
                    str(P),
                    "--max-memory",
                    str(limit),
                ]
                output = subprocess.run(
                    [sys.executable, __file__, *arguments],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
                before, after = json.loads(output.splitlines()[-1])
                print(
                    f"| {path} | {limit} | {P} | {before:.0f} | {after:.0f} | {after - before:.0f} |",
                    flush=True,
                )


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["cost", "memory", "peak"])
    parser.add_argument("--folder", type=Path, default=Path("runs/evaluation_scale"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--path", choices=MODES, default="unmerged")
    parser.add_argument("--candidates", type=int, default=1)
    parser.add_argument("--max-memory", type=int, default=2048, help="MiB")
    arguments = parser.parse_args()
    if arguments.command == "cost":
        cost(arguments.folder, arguments.repeats)
    elif arguments.command == "memory":
        memory()
    else:
        peak(
            Case(P=arguments.candidates, tokens=4096), arguments.path, arguments.max_memory * 2**20
        )


if __name__ == "__main__":
    main()
