"""Compare the scores of finished runs with those of plain transformers and peft.

The exported adapter is loaded as a user loads it, and every example is scored one at a time. Dev
scores are those in the history of the run. Test scores by example are made by the reopened run;
their means are those in `result.json`.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch

from benchmarks.real_base.merge import RUNS
from benchmarks.real_base.plain_scores import load_plain, plain_score
from evox_evogm.command.merge_run import MergeRun
from evox_evogm.command.settings_file import read_settings
from evox_evogm.problems import LoRAMergeProblem, Task

CLOSE = 1e-4  # nats; two ways to add up the same float32 logits differ by less


def check_runs(base: Path, out: Path, names: Iterable[str] = RUNS) -> None:
    """Compare the runs of `merge_runs`, and print a table for each.

    :param base: the folder of the base.
    :param out: the folder with the run folders.
    :param names: of the runs; by default all.
    :raises SystemExit: if a score differs.
    """
    wrong = 0
    for name in names:
        settings, folder = read_settings(out / f"{name}.yaml")
        cost = json.loads((out / f"{name}_cost.json").read_text())
        with MergeRun(settings, folder, out / name) as run:
            print(f"\n{name}: {cost}, {describe_probe(run.problem, cost)}", flush=True)
            found = run_scores(run)
            by_table = table_scores(run)
            tasks = run.tasks.by_split()
        plain = plain_scores(base, out / name / "adapter", tasks)
        table = comparison(tasks, found, plain, by_table)
        table.to_csv(out / f"{name}_check.csv", index=False)
        print(table.to_string(index=False), flush=True)
        wrong += int(table["different"].sum())
    if wrong:
        raise SystemExit(f"expected the scores of plain transformers, found {wrong} others")


def describe_probe(problem: LoRAMergeProblem, cost: Mapping[str, float]) -> str:
    """What the probe of the base finds, and the processor time that it takes.

    :param cost: of the run, as in `NAME_cost.json`.
    """
    start = time.process_time()
    problem.scorer.probe(problem.tasks)
    seconds = time.process_time() - start
    notes = "; ".join(problem.capabilities.notes) or "all agrees with plain passes"
    share = seconds / (60 * cost["processor_minutes"])
    return f"modes {problem.modes}, probe {seconds:.1f} s ({share:.1%} of the run): {notes}"


def run_scores(run: MergeRun) -> dict[tuple[str, str], list[float]]:
    """The scores of the best merge by split and task, a number per example.

    :raises ValueError: if the history does not have the merge.
    """
    best = list(run.result()["coefficients"].values())
    found = {}
    for line in (run.out / "history.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record.get("coefficients") == best:
            for task, scores in record["examples"].items():
                found["dev", task] = scores
    if not found:
        raise ValueError(f"{run.out}: expected the best merge in its history, found another one")
    for task, scores in run.problem.score_tasks(torch.tensor(best), run.tasks.test).items():
        found["test", task] = scores.tolist()
    return found


def table_scores(run: MergeRun) -> dict[tuple[str, str], float]:
    """The mean scores of the best merge in `result.json`, by split and task."""
    merge = run.result()["scores"][-1]
    found = {}
    for split in ("dev", "test"):
        for task, score in merge[split].items():
            found[split, task] = score
    return found


def plain_scores(
    base: Path, adapter: Path, tasks: Sequence[tuple[str, Task]]
) -> dict[tuple[str, str], list[float]]:
    """The scores of an adapter by split and task, one example at a time."""
    model, tokenizer = load_plain(base, adapter)
    found = {}
    for split, task in tasks:
        scores = [plain_score(model, tokenizer, task, example) for example in task.examples]
        found[split, task.name] = scores
    return found


def comparison(
    tasks: Sequence[tuple[str, Task]],
    found: Mapping[tuple[str, str], Sequence[float]],
    plain: Mapping[tuple[str, str], Sequence[float]],
    by_table: Mapping[tuple[str, str], float],
) -> pd.DataFrame:
    """A row for every split of a task: both means, and how many scores differ.

    Zeros and ones have to be the same; log-probabilities may be `CLOSE` apart.

    :param tasks: with their splits.
    :param found: scores of the run, by split and task.
    :param plain: scores of plain transformers.
    :param by_table: means in `result.json`.
    """
    rows = []
    for split, task in tasks:
        ours, theirs = (torch.tensor(scores[split, task.name]) for scores in (found, plain))
        apart = (ours - theirs).abs()
        allowed = CLOSE if task.metric == "gold_log_probability" else 0.0
        mean = by_table[split, task.name]
        rows.append(
            {
                "task": task.name,
                "metric": task.metric,
                "split": split,
                "examples": len(theirs),
                "run": round(mean, 6),
                "plain": round(float(theirs.mean()), 6),
                "different": int((apart > allowed).sum()),
                "largest difference": float(apart.max()),
                "of means": abs(mean - float(theirs.mean())),
            }
        )
    return pd.DataFrame(rows)
