"""How does the cost of evaluating a population grow with P, n, r, tokens and width? And its memory?

Random Llama models, by default of eight layers, with random adapters on all linear layers. One
quantity varies at a time around P = 20, n = 8 experts of rank 8, 512 prompt tokens per candidate
and width 512. Both modes, interleaved repeats, medians. And the mode that `auto` chooses: by how
much is it slower than the better one?

    python -m benchmarks.speed.evaluation_scale cost      # table; costs.csv and costs.svg in runs
    python -m benchmarks.speed.evaluation_scale memory    # peak memory of P = 1 and P = 64, each in
                                                          # a process of its own
"""

import argparse
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

import pandas as pd
import torch
from safetensors.torch import save_file

from benchmarks.plots import draw_panels
from evox_evogm.problems import Example, LoRAMergeProblem, Task

PROMPT = 64  # tokens
MODES = ("unmerged", "merged")


@dataclass(frozen=True)
class Case:
    """What is evaluated."""

    P: int = 20
    """Candidates."""
    n: int = 8
    """Experts."""
    r: int = 8
    """Their rank."""
    tokens: int = 512
    """Prompt tokens per candidate."""
    width: int = 512
    """Of the model."""
    layers: int = 8
    """Of the model."""
    dtype: str = "bfloat16"
    """Of its weights."""


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

    tokens = ["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


def build_model(width: int, layers: int, dtype: str):
    """A Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=width,
        intermediate_size=int(2.75 * width),
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
    )
    return LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()


def write_adapters(model: torch.nn.Module, n: int, r: int, folder: Path) -> list[Path]:
    """n random adapters of rank r on every linear layer but the last."""
    output = model.get_output_embeddings()
    linear = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not output:
            linear[name] = module
    config = {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": r,
        "target_modules": sorted({name.split(".")[-1] for name in linear}),
    }
    folders = []
    for index in range(n):
        tensors = {}
        for name, module in linear.items():
            a, b = torch.randn(r, module.in_features), torch.randn(module.out_features, r)
            tensors[f"base_model.model.{name}.lora_A.weight"] = a / 30
            tensors[f"base_model.model.{name}.lora_B.weight"] = b / 30
        expert = folder / f"expert{index}"
        expert.mkdir()
        save_file(tensors, expert / "adapter_model.safetensors")
        (expert / "adapter_config.json").write_text(json.dumps(config))
        folders.append(expert)
    return folders


def make_problem(case: Case, mode: str, **settings) -> LoRAMergeProblem:
    """Random prompts of lower-case letters, a random model and random experts."""
    generator = torch.Generator().manual_seed(1)
    letters = torch.randint(97, 123, (case.tokens // PROMPT, PROMPT), generator=generator)
    examples = []
    for index, row in enumerate(letters.tolist()):
        examples.append(Example(str(index), "".join(map(chr, row)), "yes"))
    task = Task("random", "1", "gold_log_probability", tuple(examples))
    model = build_model(case.width, case.layers, case.dtype)
    with tempfile.TemporaryDirectory() as folder:
        experts = write_adapters(model, case.n, case.r, Path(folder))
        return LoRAMergeProblem(
            model, experts, [task], tokenizer=build_tokenizer(), mode=mode, **settings
        )


def population(case: Case) -> torch.Tensor:
    return torch.rand(case.P, case.n, generator=torch.Generator().manual_seed(2)) / case.n


def milliseconds(case: Case, repeats: int) -> dict[str, float]:
    """Median milliseconds per candidate by mode."""
    problems = {mode: make_problem(case, mode) for mode in MODES}
    pop = population(case)
    for problem in problems.values():
        problem.score_together(pop[:2])
    times = {mode: [] for mode in MODES}
    for _ in range(repeats):
        for mode, problem in problems.items():
            start = time.perf_counter()
            problem.score_together(pop)
            times[mode].append(1e3 * (time.perf_counter() - start) / case.P)
    return {mode: statistics.median(times[mode]) for mode in MODES}


def chosen_mode(case: Case) -> str:
    """The mode that the cost model chooses, from rates that it measures itself."""
    problem = make_problem(case, "auto")
    problem.choose_modes(case.P)
    (mode,) = problem.modes.values()
    return mode


def cost(folder: Path, repeats: int, around: Case) -> None:
    """Print a line per case, and write the table and the plot.

    :param around: the case in which one quantity varies at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    print("| varied | value | unmerged, ms per candidate | merged | chosen | against the better |")
    print("| --- | ---: | ---: | ---: | --- | ---: |")
    for name, values in VARIED.items():
        for value in values:
            case = replace(around, **{name: value})
            ms = milliseconds(case, repeats)
            chosen = chosen_mode(case)
            ratio = ms[chosen] / min(ms.values())
            rows.append({"varied": name, "value": value, **ms, "chosen": chosen})
            print(
                f"| {name} | {value} | {ms['unmerged']:.2f} | {ms['merged']:.2f} | {chosen} "
                f"| {ratio:.2f} |",
                flush=True,
            )
    table = pd.DataFrame(rows)
    titles = {mode: f"{mode} ms per candidate" for mode in MODES}
    table.rename(columns=titles).to_csv(folder / "costs.csv", index=False, float_format="%.2f")
    panels = {}
    for name in VARIED:
        panels[name] = table[table["varied"] == name].set_index("value")[list(MODES)]
    draw_panels(panels, folder / "costs.svg", ylabel="ms per candidate", logarithmic=True)


def peak(case: Case, mode: str, max_memory: int) -> None:
    """Print the peak memory of this process before and after an evaluation, in MiB."""
    problem = make_problem(case, mode, max_memory=max_memory, candidates_at_once=case.P)
    problem.score_together(population(case)[:1], [problem.tasks[0].take(1)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    problem.evaluate(population(case))
    print(json.dumps([before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def peak_of_process(mode: str, limit: int, candidates: int) -> tuple[float, float]:
    """`peak` in a process of its own."""
    arguments = ["--mode", mode, "--candidates", str(candidates), "--max-memory", str(limit)]
    command = [sys.executable, "-m", "benchmarks.speed.evaluation_scale", "peak", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    before, after = json.loads(done.stdout.splitlines()[-1])
    return before, after


def memory() -> None:
    """Print a line per process."""
    print(
        "| mode | max_memory, MiB | P | peak before, MiB | peak after | grown by |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for mode in MODES:
        for limit in (64, 2048):
            for candidates in (1, 64):
                before, after = peak_of_process(mode, limit, candidates)
                print(
                    f"| {mode} | {limit} | {candidates} | {before:.0f} | {after:.0f} "
                    f"| {after - before:.0f} |",
                    flush=True,
                )


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["cost", "memory", "peak"])
    parser.add_argument("--folder", type=Path, default=Path("runs/evaluation_scale"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=Case.layers)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--mode", choices=MODES, default="unmerged")
    parser.add_argument("--candidates", type=int, default=1)
    parser.add_argument("--max-memory", type=int, default=2048, help="MiB")
    arguments = parser.parse_args()
    if arguments.command == "cost":
        around = Case(layers=arguments.layers, dtype=arguments.dtype)
        cost(arguments.folder, arguments.repeats, around)
    elif arguments.command == "memory":
        memory()
    else:
        case = Case(P=arguments.candidates, tokens=4096)
        peak(case, arguments.mode, arguments.max_memory * 2**20)


if __name__ == "__main__":
    main()
