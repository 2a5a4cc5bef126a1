"""Short questions of reasoning-gym: three tasks, each with another metric, and a fourth.

- `chain_sum`: sums of three digits. The generated answer has to match.
- `spell_backward`: short words. The log-probability of the answer counts.
- `gcd`: four numbers to choose from, as JSON lines. The likeliest one has to be right.
- `letter_counting`: how often a letter is in a few words. The generated answer has to match.
"""

import json
import random
from itertools import islice
from pathlib import Path

from evox_evogm.problems import Task
from evox_evogm.problems.tasks.readers import make_example, reasoning_gym_rows

DEV, TEST = 16, 40  # examples a task
SEED = 0  # of the questions
DIVISORS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 16, 18, 20, 24)
OPTIONS = {  # of the data sets
    "chain_sum": {"min_terms": 3, "max_terms": 3, "max_digits": 1},
    "spell_backward": {"min_word_len": 3, "max_word_len": 5},
    "gcd": {"max_numbers": 2, "max_value": 60},
    "letter_counting": {"min_words": 2, "max_words": 3},
}
SCORING = {
    "chain_sum": {"metric": "exact_match", "max_new_tokens": 5},
    "spell_backward": {"metric": "gold_log_probability"},
    "gcd": {"metric": "choice_likelihood", "continuation": "text"},
    "letter_counting": {"metric": "exact_match", "max_new_tokens": 3},
}
MERGED = ("chain_sum", "spell_backward", "gcd")  # the tasks of the merge runs


def rows_of(name: str, split: str, count: int) -> list[dict]:
    """Different questions of one split of a task. No question is in two splits."""
    stream = reasoning_gym_rows(name, split, seed=SEED, options=OPTIONS[name])
    rows = list(islice(stream, count))
    return [with_choices(row) for row in rows] if name == "gcd" else rows


def with_choices(row: dict) -> dict:
    """A question with its answer among three other numbers, always the same for a question."""
    generator = random.Random(row["question"])
    others = [str(divisor) for divisor in DIVISORS if str(divisor) != row["answer"]]
    texts = [row["answer"], *generator.sample(others, 3)]
    generator.shuffle(texts)
    key = "ABCD"[texts.index(row["answer"])]
    return {**row, "choices": texts, "answer": key}


def training_task(name: str, count: int, *, chat: bool) -> Task:
    """Questions to train on, which neither dev nor test has."""
    return task_of(name, "train", count, chat=chat)


def task_of(name: str, split: str, count: int, *, chat: bool) -> Task:
    """The first questions of one split of a task."""
    examples = []
    for index, row in enumerate(rows_of(name, split, count)):
        examples.append(make_example(row, f"{name}, {index}", index))
    return Task(name, split, examples=tuple(examples), chat=chat, **SCORING[name])


def write_json_lines(folder: Path) -> None:
    """Write the dev and the test file of the task with choices."""
    for split, count in (("dev", DEV), ("test", TEST)):
        lines = [json.dumps(row) + "\n" for row in rows_of("gcd", split, count)]
        (folder / f"gcd_{split}.jsonl").write_text("".join(lines))


def task_entries(*, chat: bool) -> list[dict]:
    """The tasks as the settings of a run have them.

    :param chat: whether questions go through the chat template.
    """
    entries = []
    for name in MERGED:
        scoring = SCORING[name]
        source = {"reasoning_gym": name, "seed": SEED, "options": OPTIONS[name]}
        if name == "gcd":
            source = {"json_lines": "gcd_dev.jsonl", "test_file": "gcd_test.jsonl", "name": name}
        entries.append({**source, "dev": DEV, "test": TEST, "chat": chat, **scoring})
    return entries
