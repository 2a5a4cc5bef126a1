"""Finished run folders without a model, for what reads them."""

import json
import math
import random

import yaml


def write_run(
    folder,
    *,
    experts=("a", "b", "c"),
    tasks=("add", "sub"),
    evaluations=12,
    pop_size=3,
    groups=(),
    examples=4,
    data=None,
    **changes,
):
    """A run folder with random numbers from a seed, as the command writes it.

    :param groups: names of groups of modules, if there are several.
    :param examples: dev examples of a task; there are twice as many test examples.
    :param data: what `report_data.json` holds, if there is one.
    :param changes: entries of `result.json`.
    :return: the folder.
    """
    from evox_evogm.resume.journal import encode_record, to_json

    numbers = random.Random(3)
    n, g = len(experts), len(groups) or 1
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for evaluation in range(evaluations):
        point = [round(numbers.uniform(-0.5, 0.9), 4) for _ in range(n * g)]
        distance = math.sqrt(sum((value - 0.3) ** 2 for value in point) / len(point))
        by_example = {}
        for task in tasks:
            right = max(0.05, 0.9 - distance)
            by_example[task] = [float(numbers.random() < right) for _ in range(examples)]
        means = {task: sum(scores) / examples for task, scores in by_example.items()}
        record = {
            "evaluation": evaluation,
            "step": evaluation // pop_size,
            "score": sum(means.values()) / len(means),
            "tasks": means,
            "coefficients": point,
            "examples": by_example,
            "seconds": 0.5,
        }
        records.append(record)
    lines = []
    for place, record in enumerate(records):
        block = [place % pop_size, min(pop_size, evaluations - place // pop_size * pop_size)]
        lines.append(encode_record({**record, "block": block}))
    (folder / "history.jsonl").write_text("".join(lines))
    best = max(records, key=lambda record: record["score"])
    rows = [row("base", "base", tasks, 0.0, 0.125)]
    for place, name in enumerate(experts):
        rows.append(row(name, "expert", tasks, 0.25 + 0.25 * (place == 1), 0.375))
    rows.append(row("average", "average", tasks, 0.25, 0.5))
    merge = row("SurrogateEvoGM", "merge", tasks, 0.0, 0.625)
    rows.append({**merge, "dev": best["tasks"]})
    table = [best["coefficients"][place * g : place * g + g] for place in range(n)]
    by_group = {}
    if groups:
        for name, values in zip(experts, table, strict=True):
            by_group[name] = dict(zip(groups, values, strict=True))
    described = {"metric": "exact_match", "mode": "unmerged", "version": "x", "dev": examples}
    described["test"] = 2 * examples
    result = {
        "coefficients": {
            name: sum(values) / g for name, values in zip(experts, table, strict=True)
        },
        "coefficients_by_group": by_group,
        "scores": rows,
        "evaluations": evaluations,
        "full_evaluations": float(evaluations),
        "seconds": 0.5 * evaluations,
        "tasks": {task: described for task in tasks},
        "regmean": False,
        "algorithm": "SurrogateEvoGM",
        "notes": [],
        "no_information": None,
        "adapter": {"folder": "adapter", "largest_relative_difference": 1e-7, "error": None},
        "seed": 3,
        "dtype": "float32",
        "device": "cpu",
        "threads": 1,
        "versions": {"evox-evogm": "0.1.0", "torch": "2.13.0"},
        **changes,
    }
    (folder / "result.json").write_text(json.dumps(to_json(result)))
    settings = {"base": "base", "experts": list(experts), "budget": evaluations}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    if data is not None:
        (folder / "report_data.json").write_text(json.dumps(to_json(data)))
    return folder


def row(name, kind, tasks, dev, test):
    """A row of the final table without standard errors, as older runs have it."""
    scores = {"dev": dict.fromkeys(tasks, dev), "test": dict.fromkeys(tasks, test)}
    return {"name": name, "kind": kind, **scores, "failure": None}


def report_data(experts=("a", "b", "c"), tasks=("add", "sub"), prompt="1 + 1 =", answer="2"):
    """What `report_data.json` holds, with one example."""
    without = {}
    for place, name in enumerate(experts):
        scores = dict.fromkeys(tasks, 0.5 - 0.25 * place)
        without[name] = {"scores": scores, "errors": dict.fromkeys(tasks, 0.1)}
    scores = {"base": 0.0, "expert": 0.0, "merge": 1.0}
    answers = {model: {"text": answer, "share": None} for model in scores}
    example = {
        "task": tasks[0],
        "metric": "exact_match",
        "id": "7",
        "prompt": prompt,
        "expected": "2",
        "scores": scores,
        "answers": answers,
    }
    counts = {"merge over expert": 5, "expert over merge": 1, "both over base": 1}
    counts |= {"base over both": 0, "alike": 1}
    n = len(experts)
    return {
        "format": 1,
        "command": "evogm merge run.yaml --out out",
        "box": {"lower": [-1.0] * n, "upper": [1.0] * n},
        "contributions": {
            "merge": dict.fromkeys(tasks, 0.5),
            "without": without,
            "evaluations": n,
            "seconds": 1.5,
        },
        "examples": {"expert": experts[0], "counts": counts, "shown": [example], "seconds": 2.0},
    }
