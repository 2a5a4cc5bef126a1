"""Merges without a search, beside those of `compare.py`: the same base, experts, tasks and splits.

What a method leaves open (scales, densities) is chosen on dev from a small grid, whose points are counted as evaluations; the
test split is scored once, for the choice. A method that has its file in runs/compare/LEVEL/nN_static is not run again.

    python benchmarks/static_merges.py --level small --mergekit /path/to/mergekit-yaml
    python benchmarks/compare.py report --level small     # shows them too

TIES (P. Yadav et al. 2023, arXiv 2306.01708), DARE (L. Yu et al. 2024, arXiv 2311.03099), with TIES's signs or without, and
DELLA (P. Deep et al. 2024, arXiv 2406.11617) come from mergekit (`pip install mergekit`, C. Goddard et al. 2024, arXiv
2403.13257), which may live in an environment of its own; without it they are left out. Fisher, RegMean and AdaMerging are in
`dense_merges.py`; `LEFT_OUT` says what is missing and why. All is computed in float32: weights in bfloat16 would round most of
a small delta away.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import yaml
from compare_report import print_static
from dense_merges import (
    ada_merging,
    coefficients_by_layer,
    fisher_average,
    input_grams,
    mean_scores,
    merged_weights,
    regression_mean,
    squared_gradients,
    weights_in_place,
)

from evox_evogm.problems import LoRAMergeProblem, Task
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.tasks.metrics import requests_of

Scores = dict[str, float]  # by task
SCALES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)  # coefficients of all experts
DENSITIES = (0.2, 0.5)
KEPT = (0.1, 0.5, 0.9)  # off the diagonals of RegMean's grams
# Of methods that divide by the weights of the experts that agree: a common weight of all would cancel out.
LAMBDAS = (0.1, 0.2, 0.3, 0.5, 1.0)
# mergekit's name, and whether it divides so by default: TIES's disjoint mean, and DELLA's after it.
MERGEKIT = {
    "TIES": ("ties", True),
    "DARE": ("dare_linear", False),
    "DARE-TIES": ("dare_ties", False),
    "DELLA": ("della", True),
}
SOURCES = {
    "base": "the base model",
    "best expert": "a single expert, chosen on dev",
    "Model Soup": "Wortsman et al. 2022, arXiv 2203.05482",
    "task arithmetic": "Ilharco et al. 2023, arXiv 2212.04089",
    "Fisher": "Matena and Raffel 2022, arXiv 2111.09832",
    "RegMean": "Jin et al. 2023, arXiv 2212.09849",
    "AdaMerging task-wise": "Yang et al. 2024, arXiv 2310.02575",
    "AdaMerging layer-wise": "Yang et al. 2024, arXiv 2310.02575",
    "TIES": "Yadav et al. 2023, arXiv 2306.01708",
    "DARE": "Yu et al. 2024, arXiv 2311.03099",
    "DARE-TIES": "Yu et al. 2024, arXiv 2311.03099",
    "DELLA": "Deep et al. 2024, arXiv 2406.11617",
}
LEFT_OUT = {
    "RankMean": "its definition could not be looked up here; one from memory would be another method under its name"
}


@dataclass
class Setting:
    """One merge of a grid: what was chosen, and a function that scores it on some tasks."""

    name: str
    score: Callable[[list[Task]], Scores]


class Level:
    """The problem of a level, its test tasks, and the questions that each expert was made for."""

    def __init__(self, name: str, n: int):
        if name == "small":
            import small_level as module
        else:
            import real_level as module
        self.problem: LoRAMergeProblem = module.make_problem(n, dtype=torch.float32)
        self.dev, self.test = self.problem.tasks, module.tasks(n, "test")
        self.experts = [expert.name for expert in self.problem.experts]
        # At level small, expert R0 is one for the operation R.
        names = [expert[0] if name == "small" else expert for expert in self.experts]
        self.own = [next(task for task in self.dev if task.name == own) for own in names]

    @property
    def n(self) -> int:
        return len(self.experts)

    def linear(self, name: str, coefficients: torch.Tensor) -> Setting:
        """A merge that is a vector of coefficients."""

        def score(tasks: list[Task]) -> Scores:
            return {
                task: float(scores.mean())
                for task, scores in self.problem.score_tasks(coefficients, tasks).items()
            }

        return Setting(name, score)

    def dense(self, name: str, weights: dict[str, torch.Tensor]) -> Setting:
        """A merge that is weights of the modules that experts change."""

        def score(tasks: list[Task]) -> Scores:
            with weights_in_place(self.problem.language_model.model, weights):
                return mean_scores(self.problem.language_model, tasks)

        return Setting(name, score)


def base(level: Level) -> Iterator[Setting]:
    yield level.linear("", torch.zeros(level.n))


def best_expert(level: Level) -> Iterator[Setting]:
    for name, row in zip(level.experts, torch.eye(level.n), strict=True):
        yield level.linear(name, row)


def single_expert(level: Level, index: int) -> Iterator[Setting]:
    yield level.linear("", torch.eye(level.n)[index])


def model_soup(level: Level) -> Iterator[Setting]:
    yield level.linear("", torch.full((level.n,), 1 / level.n))


def task_arithmetic(level: Level) -> Iterator[Setting]:
    for scale in SCALES:
        yield level.linear(f"scale {scale}", torch.full((level.n,), scale))


def expert_weights(level: Level) -> list[dict[str, torch.Tensor]]:
    return [merged_weights(level.problem, row) for row in torch.eye(level.n)]


def fisher(level: Level) -> Iterator[Setting]:
    """With each expert's Fisher information on its own dev questions and their answers."""
    model, experts = level.problem.language_model.model, expert_weights(level)
    importance = []
    for weights, task in zip(experts, level.own, strict=True):
        with weights_in_place(model, weights):
            importance.append(
                squared_gradients(
                    model, list(weights), requests_of(task, level.problem.language_model)
                )
            )
    names = list(experts[0])
    yield level.dense(
        "", {k: fisher_average([w[k] for w in experts], [f[k] for f in importance]) for k in names}
    )


def regmean(level: Level) -> Iterator[Setting]:
    """With each expert's inputs on its own dev questions and their answers."""
    model, experts = level.problem.language_model.model, expert_weights(level)
    grams = []
    for weights, task in zip(experts, level.own, strict=True):
        with weights_in_place(model, weights):
            grams.append(
                input_grams(model, list(weights), requests_of(task, level.problem.language_model))
            )
    for keep in KEPT:
        merged = {
            name: regression_mean(
                [w[name].float() for w in experts], [g[name] for g in grams], keep
            )
            for name in experts[0]
        }
        yield level.dense(f"off-diagonals x {keep}", merged)


def adamerging(level: Level, *, by_layer: bool) -> Iterator[Setting]:
    """With all dev questions, without answers; 500 steps of 16 questions, learning rate 1e-3, as published."""
    model = level.problem.language_model
    prompts = [
        model.prompt_tokens(example.prompt, chat=task.chat)
        for task in level.dev
        for example in task.examples
    ]
    for start in (1 / level.n, 0.3):
        settings = {"by_layer": by_layer, "steps": 500, "batch": 16, "lr": 1e-3}
        coefficients = ada_merging(level.problem, prompts, start, **settings)

        def score(tasks: list[Task], coefficients: torch.Tensor = coefficients) -> Scores:
            with coefficients_by_layer(level.problem, coefficients):
                return mean_scores(model, tasks)

        yield Setting(f"start {start:.2g}", score)


def by_mergekit(level: Level, command: str, method: str, normalize: bool) -> Iterator[Setting]:
    """Densities x weights or lambdas; DARE and DELLA draw once. What mergekit writes is loaded with transformers.

    The first merge of a method draws other numbers than the later ones, with the same seed: mergekit then also merges the
    adapters into models, for which peft draws too. The same grid gives the same merges again.
    """
    from transformers import AutoModelForCausalLM

    work = Path(tempfile.mkdtemp(prefix="mergekit_"))
    base = work / "base"
    level.problem.language_model.model.save_pretrained(base)
    level.problem.language_model.tokenizer.save_pretrained(base)
    dtype = str(level.problem.language_model.model.dtype).removeprefix("torch.")
    try:
        for density in DENSITIES:
            for scale in LAMBDAS if normalize else (1 / level.n, 0.3, 1.0):
                weight, factor = (1.0, scale) if normalize else (scale, 1.0)
                models = [
                    {
                        "model": f"{base}+{expert.folder}",
                        "parameters": {"weight": weight, "density": density},
                    }
                    for expert in level.problem.experts
                ]
                plan = {
                    "merge_method": method,
                    "base_model": str(base),
                    "models": models,
                    "dtype": dtype,
                }
                plan["parameters"] = {"normalize": normalize, "lambda": factor}
                (work / "plan.yaml").write_text(yaml.safe_dump(plan))
                merge = [
                    command,
                    work / "plan.yaml",
                    work / "merge",
                    "--random-seed",
                    "0",
                    "--quiet",
                ]
                merge += ["--lora-merge-cache", work / "loras", "--lora-merge-dtype", dtype]
                done = subprocess.run(merge, capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(
                        f"mergekit ended with status {done.returncode}: {done.stderr.strip()[-500:]}"
                    )
                merged = AutoModelForCausalLM.from_pretrained(
                    work / "merge", dtype=level.problem.language_model.model.dtype
                )
                model = LanguageModel(merged.eval(), level.problem.language_model.tokenizer)
                name = f"density {density}, {'lambda' if normalize else 'weight'} {scale:.2g}"
                yield Setting(name, lambda tasks, model=model: mean_scores(model, tasks))
                shutil.rmtree(work / "merge")
    finally:
        shutil.rmtree(work)


def methods(
    command: str | None, experts: Sequence[str] = ()
) -> dict[str, Callable[[Level], Iterator[Setting]]]:
    """The merges of every method, by name, and every one of the experts alone."""
    known = {
        f"expert {name}": partial(single_expert, index=index) for index, name in enumerate(experts)
    }
    known |= {
        "base": base,
        "best expert": best_expert,
        "Model Soup": model_soup,
        "task arithmetic": task_arithmetic,
        "Fisher": fisher,
        "RegMean": regmean,
        "AdaMerging task-wise": lambda level: adamerging(level, by_layer=False),
        "AdaMerging layer-wise": lambda level: adamerging(level, by_layer=True),
    }
    if command is not None:
        for name, method in MERGEKIT.items():
            known[name] = lambda level, method=method: by_mergekit(level, command, *method)
    return known


def mean(scores: Scores) -> float:
    return sum(scores.values()) / len(scores)


def choose(settings: Iterator[Setting], level: Level) -> dict:
    """Score every setting on dev, and the best of them on test."""
    best, best_scores, tried = None, {}, {}
    for setting in settings:
        scores = setting.score(level.dev)
        tried[setting.name] = mean(scores)
        if best is None or mean(scores) > mean(best_scores):
            best, best_scores = setting, scores
    test = best.score(level.test)
    return {
        "setting": best.name,
        "evaluations": len(tried),
        "dev of settings": tried,
        "dev": mean(best_scores),
        "test": mean(test),
        "dev by task": best_scores,
        "test by task": test,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--level", choices=["small", "real"], default="small")
    parser.add_argument("--n", type=int, help="experts: 10 at level small, 8 at level real")
    parser.add_argument(
        "--mergekit", default=shutil.which("mergekit-yaml"), help="the command mergekit-yaml"
    )
    parser.add_argument("--methods", nargs="*", help="by name, instead of all")
    arguments = parser.parse_args()
    n, most = (
        arguments.n or (10 if arguments.level == "small" else 8),
        64 if arguments.level == "small" else 8,
    )
    if not 2 <= n <= most:
        parser.error(f"--n: expected 2 to {most}, as many as there are, found {n}")
    if arguments.mergekit is not None and shutil.which(arguments.mergekit) is None:
        parser.error(
            f"--mergekit: expected the command mergekit-yaml, found none at {arguments.mergekit}"
        )
    if arguments.mergekit is None:
        print(
            f"mergekit-yaml: expected it on PATH or by --mergekit, found none; without {', '.join(MERGEKIT)}"
        )
    torch.manual_seed(0)
    level = Level(arguments.level, n)
    known = methods(arguments.mergekit, level.experts)
    unknown = [name for name in arguments.methods or [] if name not in known]
    if unknown:
        raise SystemExit(f"methods: expected some of {', '.join(known)}, found {unknown[0]!r}")
    folder = Path("runs/compare") / arguments.level / f"n{n}_static"
    folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.methods or known:
        path = folder / f"{name}.json"
        if path.exists():
            continue
        start = time.perf_counter()
        result = {
            "method": name,
            "source": SOURCES.get(name, "a single expert"),
            **choose(known[name](level), level),
        }
        result["seconds"] = time.perf_counter() - start
        partial_path = path.with_suffix(".part")
        partial_path.write_text(json.dumps(result, indent=1))
        partial_path.rename(path)
        print(
            f"{name} ({result['setting']}): dev {result['dev']:.3f} test {result['test']:.3f}",
            flush=True,
        )
    print_static(folder)
    for name, reason in LEFT_OUT.items():
        print(f"\n{name} is left out: {reason}.")


if __name__ == "__main__":
    main()
