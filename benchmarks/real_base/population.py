"""Eight merges of four adapters on twenty examples: together by us, one at a time by plain peft.

The two run in processes of their own, so that each has its own minutes and peak memory.
"""

import json
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pandas as pd
import torch

from benchmarks.real_base.check import CLOSE
from benchmarks.real_base.plain_scores import load_plain_merge, plain_score
from benchmarks.real_base.tasks import SCORING, task_of
from evox_evogm.problems import LoRAMergeProblem, Task

CANDIDATES = 8
EXAMPLES = 5  # of each of four tasks
SEED = 0
GIB = 2**30


def population(n: int) -> torch.Tensor:
    """The merges `(8, n)`: the average, and coefficients drawn between -.5 and 1.

    :param n: the number of adapters.
    """
    generator = torch.Generator().manual_seed(SEED)
    drawn = torch.rand(CANDIDATES - 1, n, generator=generator) * 1.5 - 0.5
    return torch.cat([torch.full((1, n), 1 / n), drawn])


def scored_tasks() -> list[Task]:
    """Every task by its own metric, and by the log-probabilities of its answers.

    Zeros and ones alone would hide small mistakes.
    """
    found = []
    for name, scoring in SCORING.items():
        task = task_of(name, "test", EXAMPLES, chat=True)
        found.append(task)
        if scoring["metric"] != "gold_log_probability":
            found.append(
                replace(task, name=f"{name}, log-probability", metric="gold_log_probability")
            )
    return found


def score_ours(
    base: Path,
    adapters: Mapping[str, Path],
    mode: Literal["auto", "unmerged", "merged"],
    out: Path,
) -> None:
    """Score the population at once, and write scores and costs to a file.

    :param base: the folder of the base.
    :param adapters: the folders of the adapters, by name.
    :param mode: of evaluation.
    :param out: the JSON file.
    """
    start = Clock()
    tasks = scored_tasks()
    problem = LoRAMergeProblem(base, adapters, tasks, dtype=torch.float32, device="cpu", mode=mode)
    pop = population(len(adapters))
    problem.choose_modes(len(pop))
    start.lap("load")
    scores = problem.score_together(pop)
    start.lap("score")
    found = {name: table.tolist() for name, table in scores.items()}
    modes = sorted(set(problem.modes.values()))
    out.write_text(json.dumps({"modes": modes, "scores": found, **start.costs()}) + "\n")


def score_plain(base: Path, adapters: Mapping[str, Path], out: Path) -> None:
    """Score the population by plain peft, one merge and one example at a time.

    :param base: the folder of the base.
    :param adapters: the folders of the adapters, by name.
    :param out: the JSON file.
    """
    start = Clock()
    model, tokenizer = load_plain_merge(base, adapters)
    start.lap("load")
    tasks = scored_tasks()
    found: dict[str, list[list[float]]] = {task.name: [] for task in tasks}
    for number, coefficients in enumerate(population(len(adapters)).tolist()):
        model.add_weighted_adapter(
            list(adapters), coefficients, f"merge_{number}", combination_type="cat"
        )
        model.set_adapter(f"merge_{number}")
        for task in tasks:
            scores = [plain_score(model, tokenizer, task, example) for example in task.examples]
            found[task.name].append(scores)
        model.delete_adapter(f"merge_{number}")
        print(f"merge {number + 1} of {CANDIDATES} scored by plain peft", flush=True)
    start.lap("score")
    out.write_text(json.dumps({"scores": found, **start.costs()}) + "\n")


class Clock:
    """Minutes of the parts of a process, and its peak memory."""

    def __init__(self):
        self.laps = [("start", time.perf_counter(), time.process_time())]

    def lap(self, name: str) -> None:
        """End a part."""
        self.laps.append((name, time.perf_counter(), time.process_time()))

    def costs(self) -> dict[str, float]:
        """Minutes by the clock and of the processor for every part, and the peak in GiB."""
        found = {}
        for (_, clock, processor), (name, later, busy) in pairwise(self.laps):
            found[f"{name}_minutes"] = round((later - clock) / 60, 2)
            found[f"{name}_processor_minutes"] = round((busy - processor) / 60, 2)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {**found, "peak_gib": round(peak / GIB, 2), "threads": torch.get_num_threads()}


def comparison(
    tasks: Sequence[Task],
    ours: Mapping[str, Sequence[Sequence[float]]],
    plain: Mapping[str, Sequence[Sequence[float]]],
) -> pd.DataFrame:
    """A row for every task: how many scores differ, and by how much.

    Zeros and ones have to be the same; log-probabilities may be `CLOSE` apart.

    :param ours: by task name, a list of scores for every merge.
    :param plain: the same by plain peft.
    """
    rows = []
    for task in tasks:
        scores = torch.tensor(plain[task.name])  # (P, S)
        apart = (torch.tensor(ours[task.name]) - scores).abs()
        allowed = CLOSE if task.metric == "gold_log_probability" else 0.0
        rows.append(
            {
                "task": task.name,
                "scores": apart.numel(),
                "mean": round(float(scores.mean()), 4),
                "different": int((apart > allowed).sum()),
                "largest difference": float(apart.max()),
            }
        )
    return pd.DataFrame(rows)


def compare(out: Path) -> None:
    """Print how the scores of `score_ours` and `score_plain` differ, and what each took.

    :param out: the folder with `ours_MODE.json` and `plain.json`.
    :raises SystemExit: if a score differs.
    """
    plain = json.loads((out / "plain.json").read_text())
    wrong = 0
    for path in sorted(out.glob("ours_*.json")):
        ours = json.loads(path.read_text())
        table = comparison(scored_tasks(), ours.pop("scores"), plain["scores"])
        print(f"\n{path.stem}: {ours}\n{table.to_string(index=False)}")
        wrong += int(table["different"].sum())
    print(f"\nplain peft: { {name: plain[name] for name in plain if name != 'scores'} }")
    if wrong:
        raise SystemExit(f"expected the scores of plain peft, found {wrong} others")
