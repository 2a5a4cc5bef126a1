"""The eight GLUE tasks as JSON lines, asked as the FLAN-T5 experts of FusionBench were trained.

    python glue_json_lines.py                    # from the hub, by the package datasets
    python glue_json_lines.py --dev 50 --test 0  # all other validation examples as test

The prompts and label texts are those of FusionBench (github.com/tanganke/fusion_bench, MIT,
tasks/flan_t5_text_generation/glue_prompt_templates.py), with its spelling: the experts know no
other. Dev and test are drawn from the validation split, because the labels of GLUE's test split are
not public.
"""

import argparse
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

DATASET = "nyu-mll/glue"


class Template(NamedTuple):
    """How a task is asked.

    :param prompt: with the names of the columns that it holds.
    :param labels: the text of each label; empty where the label is a number to be written.
    """

    prompt: str
    labels: tuple[str, ...] = ()


TEMPLATES = {
    "cola": Template(
        'Indicate if the following sentence is grammatically correct or not: "{sentence}". '
        "Answere 'acceptable' or 'unacceptable'.",
        ("unacceptable", "acceptable"),
    ),
    "mnli": Template(
        "Does the premise: '{premise}' logically imply, contradict, or is neutral to the "
        "hypothesis: '{hypothesis}'? Answere with 'entailment', 'contradiction', or 'neutral'.",
        ("entailment", "neutral", "contradiction"),
    ),
    "mrpc": Template(
        "Are the following sentences '{sentence1}' and '{sentence2}' conveying the same meaning? "
        "Answere with 'yes' or 'no'.",
        ("no", "yes"),
    ),
    "qnli": Template(
        "Given the context: '{sentence}', does the question '{question}' have an answer based on "
        "the information provided? Answer with 'yes' or 'no'.",
        ("yes", "no"),
    ),
    "qqp": Template(
        "Do the questions '{question1}' and '{question2}' have the same intent? Answere with "
        "'yes' or 'no'.",
        ("no", "yes"),
    ),
    "rte": Template(
        "Does the text: '{sentence1}' entail that '{sentence2}' is true? Provide 'yes' or 'no'.",
        ("yes", "no"),
    ),
    "sst2": Template(
        "Given the sentence '{sentence}', determine the sentiment. Is it positive or negative?",
        ("negative", "positive"),
    ),
    "stsb": Template(
        "Consider the sentences '{sentence1}' and '{sentence2}'. On a scale from 1 (completely "
        "different) to 5 (completely similar), rate the similarity."
    ),
}


def make_row(task: str, row: Mapping) -> dict[str, str]:
    """A line of a file: the prompt of an example as it is, and the text of its label.

    :param row: the columns of GLUE.
    """
    template = TEMPLATES[task]
    label = row["label"]
    answer = template.labels[label] if template.labels else f"{label:.1f}"
    return {"id": f"{task}-{row['idx']}", "prompt": template.prompt.format(**row), "answer": answer}


def choose(rows: Iterable[dict], dev: int, test: int, seed: int) -> dict[str, list[dict]]:
    """Dev and test, in a random order, without a prompt that stands twice.

    :param test: how many at most; 0 for all.
    """
    different = {row["prompt"]: row for row in rows}
    shuffled = list(different.values())
    random.Random(seed).shuffle(shuffled)
    end = dev + test if test else None
    return {"dev": shuffled[:dev], "test": shuffled[dev:end]}


def write_task(task: str, rows: Iterable[Mapping], folder: Path, args) -> None:
    """Write `TASK_dev.jsonl` and `TASK_test.jsonl`.

    :param rows: the validation examples.
    """
    chosen = choose([make_row(task, row) for row in rows], args.dev, args.test, args.seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, lines in chosen.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{task}_{split}.jsonl").write_text(text, encoding="utf-8")


def parse(arguments=None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("glue"))
    parser.add_argument("--dev", type=int, default=50, help="examples that the search sees")
    parser.add_argument("--test", type=int, default=1000, help="others at most; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main() -> None:
    """Download the validation splits, and write all files."""
    from datasets import load_dataset

    args = parse()
    for task in TEMPLATES:
        split = "validation_matched" if task == "mnli" else "validation"
        write_task(task, load_dataset(DATASET, task, split=split), args.out, args)
        print(f"{task}: written to {args.out}")


if __name__ == "__main__":
    main()
