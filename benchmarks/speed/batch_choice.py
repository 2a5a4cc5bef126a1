"""Are batches of measured sizes as fast as the constants of a CPU, 2,048 tokens a pass?

The random Llama of `evaluation_scale.py`, with prompts that are scored and answers that are
decoded. Repeats of both are interleaved, so that their ratio holds on a machine that does other
work.

    python -m benchmarks.speed.batch_choice [--repeats 5]
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.speed.evaluation_scale import (
    Case,
    build_model,
    build_tokenizer,
    population,
    write_adapters,
)
from evox_evogm.problems import Example, LoRAMergeProblem, Task

P, WIDTH, EXPERTS, RANK = 8, 256, 4, 8
SIZES = {"2,048 tokens": None, "measured": "auto"}


def make_tasks() -> dict[str, Task]:
    """Prompts of different lengths, scored by a right answer and by answers of 8 tokens."""
    generator = torch.Generator().manual_seed(1)
    examples = []
    for index in range(24):
        letters = torch.randint(97, 123, (20 + 5 * index,), generator=generator)
        examples.append(Example(str(index), "".join(map(chr, letters.tolist())), "zzz"))
    settings = {"match": "last_10_words", "max_new_tokens": 8}
    return {
        "scored": Task("scored", "1", "gold_log_probability", tuple(examples)),
        "decoded": Task("decoded", "1", "exact_match", tuple(examples[:12]), **settings),
    }


def make_problems(tasks: Mapping[str, Task]) -> dict[str, LoRAMergeProblem]:
    """A problem for each choice of sizes, with bases of the same weights."""
    problems = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, batch_tokens in SIZES.items():
            model = build_model(WIDTH)
            own = Path(folder) / name
            own.mkdir()
            problems[name] = LoRAMergeProblem(
                model,
                write_adapters(model, EXPERTS, RANK, own),
                list(tasks.values()),
                tokenizer=build_tokenizer(),
                mode="unmerged",
                batch_tokens=batch_tokens,
            )
    return problems


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    tasks = make_tasks()
    problems = make_problems(tasks)
    start = time.process_time()
    problems["measured"].choose_modes(P)
    sizes = problems["measured"].batch_sizes
    print(f"measured in {time.process_time() - start:.1f} s: {sizes.in_words()}", flush=True)
    pop = population(Case(P=P, n=EXPERTS))
    print("| task | 2,048 tokens, ms a merge | measured | ratio | smallest and largest |")
    print("| --- | ---: | ---: | ---: | --- |", flush=True)
    for kind, task in tasks.items():
        seconds: dict[str, list[float]] = {name: [] for name in problems}
        for _ in range(1 + arguments.repeats):
            for name, problem in problems.items():
                start = time.process_time()  # of this process alone
                problem.score_together(pop, [task])
                seconds[name].append(time.process_time() - start)
        constant, measured = [values[1:] for values in seconds.values()]
        ratios = [one / other for one, other in zip(measured, constant, strict=True)]
        cells = [f"{1e3 * statistics.median(values) / P:.1f}" for values in (constant, measured)]
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        ratio = f"{statistics.median(ratios):.3f}"
        print(f"| {kind} | {cells[0]} | {cells[1]} | {ratio} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
