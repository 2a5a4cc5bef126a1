"""Merge LoRA experts of DINOv2 ViT-S/14 on ten tasks of Fashion-MNIST by three searches.

python -m benchmarks.images --out runs/images --experts 10 20
"""

import argparse
import json
import time
from pathlib import Path

import torch
from evox.core import Algorithm
from evox.workflows import StdWorkflow
from transformers import AutoModel

from benchmarks.compare.methods import METHODS
from benchmarks.images.fetch import dinov2, fashion_mnist
from benchmarks.images.suite import Sizes, Suite, make_suite
from evox_evogm.problems import LoRAMergeProblem

SEARCHES = ("EvoGM", "CMA-ES", "SurrogateEvoGM")
POP_SIZE = 20  # P of the paper: with R 2 and T 3 it makes 160 evaluations
BUDGET = 160


def search(problem: LoRAMergeProblem, name: str, budget: int, seed: int) -> torch.Tensor:
    """The point `(n,)` that a search ends with.

    It is the best on dev, or what the search recommends if it can.
    """
    torch.manual_seed(seed)
    method = METHODS[name]
    given = {"problem": problem} if method.outcomes else {}
    algorithm: Algorithm = method.make(problem.n_experts, method.pop_size or POP_SIZE, **given)
    problem.cache.clear()
    problem.budget_used = 0.0
    problem.objectives = "outcomes" if method.outcomes else "mean"
    workflow = StdWorkflow(algorithm, problem, opt_direction="max")
    workflow.init_step()
    while problem.budget_used < budget:
        workflow.step()
    if hasattr(algorithm, "recommend"):
        return algorithm.recommend()
    best = problem.cache.best(besides=torch.zeros(0, problem.n_experts))
    return torch.tensor(best.coefficients)


def accuracy(problem: LoRAMergeProblem, pop: torch.Tensor, tasks) -> list[float]:
    """The mean accuracy over tasks of each merge of a population."""
    scores = problem.score_together(pop, tasks)
    return torch.stack([table.mean(1) for table in scores.values()]).mean(0).tolist()


def compare(model, suite: Suite, budget: int, seed: int, searches) -> list[dict]:
    """A row for the base, the best expert on dev, the average and what each search ends with."""
    n = len(suite.experts)
    problem = LoRAMergeProblem(model, suite.experts, suite.dev, objectives="outcomes")
    problem.choose_modes(POP_SIZE)
    rows = []

    def add(name: str, point: torch.Tensor, seconds: float | None = None) -> None:
        dev, test = (accuracy(problem, point[None], tasks)[0] for tasks in (suite.dev, suite.test))
        row = {"name": name, "dev": dev, "test": test, "seconds": seconds}
        row |= {"evaluations": problem.budget_used if seconds else None}
        rows.append(
            {**row, "coefficients": point.tolist(), "mode": list(problem.modes.values())[0]}
        )
        print(json.dumps(rows[-1]), flush=True)

    add("base", torch.zeros(n))
    alone = accuracy(problem, torch.eye(n), suite.dev)
    add("best expert on dev", torch.eye(n)[alone.index(max(alone))])
    add("average", torch.full((n,), 1 / n))
    for name in searches:
        start = time.perf_counter()
        point = search(problem, name, budget, seed)
        add(name, point, time.perf_counter() - start)
    return rows


def table(rows: list[dict]) -> list[str]:
    """The rows as lines of Markdown."""
    lines = ["| merge | dev | test | evaluations | seconds |", "| --- |" + " ---: |" * 4]
    for row in rows:
        numbers = [f"{row[split]:.3f}".removeprefix("0") for split in ("dev", "test")]
        if row["seconds"] is not None:
            numbers += [f"{row['evaluations']:.0f}", f"{row['seconds']:.0f}"]
        else:
            numbers += ["", ""]
        lines.append(f"| {row['name']} | {' | '.join(numbers)} |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Train what is not there, search, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/images"))
    parser.add_argument("--wheels", type=Path, default=Path("runs/wheels"))
    parser.add_argument("--experts", type=int, nargs="+", default=[10, 20], choices=[10, 20])
    parser.add_argument("--budget", type=int, default=BUDGET)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--searches", nargs="+", default=SEARCHES, choices=SEARCHES)
    for name, value in Sizes()._asdict().items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args(arguments)
    sizes = Sizes(*(getattr(args, name) for name in Sizes._fields))
    args.wheels.mkdir(parents=True, exist_ok=True)
    model = AutoModel.from_pretrained(dinov2(args.wheels), dtype=torch.float32).eval()
    model.requires_grad_(False)
    data = fashion_mnist()
    for n in args.experts:
        start = time.perf_counter()
        suite = make_suite(model, data, args.out / "experts", n, sizes, args.seed)
        print(f"{n} experts: {time.perf_counter() - start:.0f} s to make them", flush=True)
        rows = compare(model, suite, args.budget, args.seed, args.searches)
        (args.out / f"{n}_seed{args.seed}.json").write_text(json.dumps(rows))
        print("\n".join(table(rows)), flush=True)


if __name__ == "__main__":
    main()
