"""How fast are P merges of a language model evaluated, beside the published procedure and peft?

Four regimes on SmolLM2-135M with the shipped experts:

- about 500 and at least 5,000 prompt tokens per candidate, scored by the log-probability of the
  right answer;
- 8 and 64 generated answers.

Every procedure scores the same random candidates on the same examples. Repeats are interleaved,
medians reported, and scores compared example by example.

    python -m benchmarks.speed.evaluation_speed [--candidates 20] [--repeats 5] [--regimes short]

| procedure | what it does |
| --- | --- |
| published, peft | see `plain_procedures.py` |
| unmerged | ours: candidates share the base, and batches |
| merged | ours: one candidate after another in the weights |

Published and peft take one candidate after another, so that a few of them (`--alone`) give their
time per candidate.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

import evox_evogm
from benchmarks.plots import draw_bars
from benchmarks.speed.plain_procedures import (
    NEW_TOKENS,
    Peft,
    Published,
    gold_tokens,
    prompt_tokens,
)
from evox_evogm.problems import LoRAMergeProblem, Task, read_reasoning_gym
from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.inference.base_model import SMOLLM2, load_base

FOLDER = Path("runs/evaluation_speed")
SHIPPED = Path(evox_evogm.__file__).parent / "demo/experts"
EXPERTS = sorted(path for path in SHIPPED.iterdir() if path.is_dir())
REGIMES = {  # reasoning-gym sources, examples of each, metric
    "short": (("gcd", "chain_sum"), 6, "gold_log_probability"),
    "long": (("gcd", "chain_sum", "family_relationships", "syllogism"), 31, "gold_log_probability"),
    "generated 8": (("chain_sum",), 8, "exact_match"),
    "generated 64": (("chain_sum",), 64, "exact_match"),
}
MODES = ("unmerged", "merged")
BASELINES = ("published", "published, float32", "peft")
SAME = 1e-3  # the largest difference of scores that count as equal


class Ours:
    """`LoRAMergeProblem` in one mode. It is set up once per set of tasks, as in a search."""

    def __init__(self, model: torch.nn.Module, tokenizer, mode: str):
        self.model = model
        self.tokenizer = tokenizer
        self.mode = mode
        self.problem: LoRAMergeProblem | None = None
        self.seconds: dict[str, float] = {}  # by task, of the last call

    def __call__(self, pop: torch.Tensor, tasks: Sequence[Task]) -> torch.Tensor:
        """Scores `(P, S)` of all examples."""
        if self.problem is None or self.problem.tasks != tasks:
            self.problem = LoRAMergeProblem(
                self.model, EXPERTS, tasks, tokenizer=self.tokenizer, mode=self.mode
            )
        self.seconds = {}
        scores = []
        for task in tasks:
            start = time.perf_counter()
            scores.append(self.problem.score_together(pop, [task])[task.name])
            self.seconds[task.name] = time.perf_counter() - start
        return torch.cat(scores, 1)


def make_tasks(regime: str) -> list[Task]:
    sources, examples, metric = REGIMES[regime]
    tasks = []
    for name in sources:
        dev, _ = read_reasoning_gym(
            name, dev=examples, test=1, metric=metric, max_new_tokens=NEW_TOKENS
        )
        tasks.append(dev)
    return tasks


def load(dtype: torch.dtype):
    """A fresh base and its tokenizer."""
    return load_base(SMOLLM2, dtype=dtype, device=torch.device("cpu"))


class Comparison:
    """All procedures, and the candidates that they score."""

    def __init__(self, candidates: int, alone: int):
        """Load a base for each.

        :param candidates: P.
        :param alone: candidates of those procedures that take one after another.
        """
        half, single = torch.bfloat16, torch.float32
        self.model, self.tokenizer = load(half)
        self.procedures = {
            "published, float32": Published(*load(single), EXPERTS),
            "published": Published(*load(half), EXPERTS),
            "peft": Peft(*load(half), EXPERTS),
            "unmerged": Ours(self.model, self.tokenizer, "unmerged"),
            "merged": Ours(*load(half), "merged"),
        }
        self.exact = {mode: Ours(*load(single), mode) for mode in MODES}
        torch.manual_seed(0)
        self.pop = 0.4 * torch.rand(candidates, len(EXPERTS))
        self.few = self.pop[:alone]

    def candidates_of(self, name: str) -> torch.Tensor:
        return self.pop if name in MODES else self.few

    def warm_up(self, tasks: list[Task]) -> None:
        for procedure in self.procedures.values():
            procedure(self.pop[:1], tasks[:1])


class Times:
    """What the repeats of one regime took, and the scores of the last one."""

    def __init__(self, comparison: Comparison, tasks: list[Task], repeats: int):
        """Measure, with repeats interleaved."""
        self.ms: dict[str, list[float]] = {name: [] for name in comparison.procedures}
        self.ms_by_task: dict[str, dict[str, list[float]]] = {}
        for mode in MODES:
            self.ms_by_task[mode] = {task.name: [] for task in tasks}
        self.scores: dict[str, torch.Tensor] = {}
        self.rates: list[float] = []
        self.preparing: list[dict[str, float]] = []
        for _ in range(repeats):
            self.rates.append(product_rate(torch.bfloat16))
            for name in comparison.procedures:
                self._measure(comparison, name, tasks)
            self.preparing.append(preparing_seconds(comparison))

    def _measure(self, comparison: Comparison, name: str, tasks: list[Task]) -> None:
        procedure, pop = comparison.procedures[name], comparison.candidates_of(name)
        start = time.perf_counter()
        self.scores[name] = procedure(pop, tasks)
        self.ms[name].append(1e3 * (time.perf_counter() - start) / len(pop))
        if name in MODES:
            for task, seconds in procedure.seconds.items():
                self.ms_by_task[name][task].append(1e3 * seconds / len(pop))

    def median(self, name: str) -> float:
        """Milliseconds per candidate."""
        return statistics.median(self.ms[name])

    def median_of_task(self, mode: str, task: str) -> float:
        """Milliseconds per candidate."""
        return statistics.median(self.ms_by_task[mode][task])


def product_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Multiply-adds per second of large matrix products."""
    a, b = torch.randn(2, size, size, dtype=dtype)
    for _ in range(3):
        a @ b
    start = time.perf_counter()
    for _ in range(20):
        a @ b
    return 20 * size**3 / (time.perf_counter() - start)


def preparing_seconds(comparison: Comparison) -> dict[str, float]:
    """Seconds per candidate before its first forward pass."""
    pop, seconds = comparison.pop, {}
    start = time.perf_counter()
    comparison.procedures["published"].merge(pop[0])
    seconds["published"] = time.perf_counter() - start
    problem = comparison.procedures["unmerged"].problem
    start = time.perf_counter()
    with merged(problem.language_model.model, problem.stacked, pop):
        seconds["unmerged"] = (time.perf_counter() - start) / len(pop)
    merger = comparison.procedures["merged"].problem.scorer.weight_merger
    start = time.perf_counter()
    merger.load(pop[0])
    seconds["merged"] = time.perf_counter() - start
    merger.restore()
    return seconds


def needed_multiply_adds(model: torch.nn.Module, tokenizer, tasks: list[Task]) -> float:
    """Of one candidate.

    Every token of prompts and answers goes through the layers, and the answers through the output
    layer.
    """
    output = model.get_output_embeddings()
    layers = 0
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not output:
            layers += module.weight.numel()
    needed = 0
    for task in tasks:
        for example in task.examples:
            answer = len(gold_tokens(tokenizer, task, example))
            tokens = len(prompt_tokens(tokenizer, example)) + answer
            needed += tokens * layers + answer * output.weight.numel()
    return needed


def count_prompt_tokens(tokenizer, tasks: list[Task]) -> int:
    total = 0
    for task in tasks:
        total += sum(len(prompt_tokens(tokenizer, example)) for example in task.examples)
    return total


def print_times(times: Times) -> None:
    """Milliseconds per candidate of every procedure, and ratios."""
    print(
        "| procedure | ms per candidate | spread | faster than published | than it in float32 "
        "| than peft |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for name, values in times.ms.items():
        spread = f"{min(values):.0f}-{max(values):.0f}"
        ratios = [f"{times.median(other) / times.median(name):.1f}" for other in BASELINES]
        print(f"| {name} | {times.median(name):.0f} | {spread} | {' | '.join(ratios)} |")


def print_chosen_modes(comparison: Comparison, times: Times, tasks: list[Task]) -> float:
    """Say how good the modes are that the cost model chooses; returns their ms per candidate."""
    problem = LoRAMergeProblem(comparison.model, EXPERTS, tasks, tokenizer=comparison.tokenizer)
    problem.choose_modes(len(comparison.pop))
    chosen = best_by_task = 0.0
    for task in tasks:
        costs = {mode: times.median_of_task(mode, task.name) for mode in MODES}
        chosen += costs[problem.modes[task.name]]
        best_by_task += min(costs.values())
    forced = []
    for mode in MODES:
        forced.append(sum(times.median_of_task(mode, task.name) for task in tasks))
    print(
        f"\nchosen: {problem.modes}: {chosen:.0f} ms, "
        f"{chosen / min(forced):.2f} of the better forced mode, "
        f"{chosen / best_by_task:.2f} of the better one for every task"
    )
    return chosen


def print_machine(comparison: Comparison, times: Times, tasks: list[Task], ms: float) -> None:
    """Say how much of the machine's speed the needed products are.

    :param ms: per candidate.
    """
    needed = needed_multiply_adds(comparison.model, comparison.tokenizer, tasks)
    done, rate = needed / (1e-3 * ms), statistics.median(times.rates)
    print(
        f"machine: {done / 1e9:.0f} of {rate / 1e9:.0f} G multiply-adds a second needed: "
        f"{100 * done / rate:.0f} %"
    )


def print_preparing(times: Times) -> None:
    """Say how long it takes until a candidate can be evaluated."""
    seconds = {}
    for name in times.preparing[0]:
        seconds[name] = statistics.median(row[name] for row in times.preparing)
    for mode in MODES:
        ratio = seconds["published"] / seconds[mode]
        print(
            f"preparing a candidate: {mode} {1e3 * seconds[mode]:.2f} ms, "
            f"published {ratio:.0f} times as long"
        )


def print_differences(comparison: Comparison, times: Times, tasks: list[Task]) -> None:
    """Compare scores with the published ones, and those of bfloat16 with those of float32."""
    from scipy.stats import spearmanr

    for mode, ours in comparison.exact.items():
        found = ours(comparison.few, tasks)
        differences = (found - times.scores["published, float32"]).abs()
        differ = (differences > SAME).nonzero().tolist()
        print(
            f"float32, {mode}: {len(differ)} of {found.numel()} scores differ "
            f"from the published ones {differ[:5]}"
        )
    exact = comparison.exact["unmerged"](comparison.pop, tasks).mean(1)
    rounded = times.scores["unmerged"].mean(1)
    print(
        f"float32 and bfloat16: rank correlation of {len(exact)} candidates "
        f"{spearmanr(exact, rounded).statistic:.3f}, "
        f"largest difference of a mean score {(exact - rounded).abs().max():.3f} "
        f"(spread of scores {exact.std():.3f})",
        flush=True,
    )


def main() -> None:
    # Of transformers about peft, and of peft about adapters that are deleted.
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--alone", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--regimes", nargs="+", choices=list(REGIMES), default=list(REGIMES))
    arguments = parser.parse_args()
    comparison = Comparison(arguments.candidates, arguments.alone)
    print(
        f"bfloat16 unless said, P {len(comparison.pop)}, {torch.get_num_threads()} threads, "
        f"{arguments.repeats} repeats",
        flush=True,
    )
    medians = {}
    for regime in arguments.regimes:
        tasks = make_tasks(regime)
        comparison.warm_up(tasks)
        times = Times(comparison, tasks, arguments.repeats)
        tokens = count_prompt_tokens(comparison.tokenizer, tasks)
        print(f"\n{regime}: {tokens} prompt tokens per candidate\n")
        print_times(times)
        ms = print_chosen_modes(comparison, times, tasks)
        print_machine(comparison, times, tasks, ms)
        print_preparing(times)
        print_differences(comparison, times, tasks)
        medians[regime] = {name: times.median(name) for name in times.ms}
    table = pd.DataFrame.from_dict(medians, orient="index")
    draw_bars(table, FOLDER / "evaluation_speed.svg", xlabel="ms per candidate", logarithmic=True)


if __name__ == "__main__":
    main()
