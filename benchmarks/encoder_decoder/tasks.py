"""Three procedural tasks of texts: reverse a word, sort digits, add two numbers."""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

LETTERS = "abcdefghij"
TEST_SHARE = 20  # percent of all questions that nothing is trained on, nor searched with
DEV_SHARE = 10


def reverse(generator: random.Random) -> tuple[str, str]:
    """A word of three to five letters, and the word from its end."""
    word = "".join(generator.choices(LETTERS, k=generator.randint(3, 5)))
    return f"reverse {word}", word[::-1]


def sort(generator: random.Random) -> tuple[str, str]:
    """Three to five digits, and the same in ascending order."""
    digits = "".join(generator.choices("0123456789", k=generator.randint(3, 5)))
    return f"sort {digits}", "".join(sorted(digits))


def add(generator: random.Random) -> tuple[str, str]:
    """Two numbers below 50, and their sum."""
    one, other = generator.randrange(50), generator.randrange(50)
    return f"add {one} {other}", str(one + other)


TASKS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "reverse": reverse,
    "sort": sort,
    "add": add,
}


def split_of(prompt: str) -> str:
    """The split of a question, by a hash of its text."""
    percent = int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % 100
    if percent < TEST_SHARE:
        return "test"
    return "dev" if percent < TEST_SHARE + DEV_SHARE else "train"


def questions(task: str, split: str, seed: int) -> Iterator[tuple[str, str]]:
    """An endless stream of prompts and answers of a split. They may repeat."""
    generator = random.Random(f"{task} {split} {seed}")
    while True:
        prompt, answer = TASKS[task](generator)
        if split_of(prompt) == split:
            yield prompt, answer


def write_json_lines(folder: Path, sizes: dict[str, int]) -> None:
    """Write `TASK_dev.jsonl` and `TASK_test.jsonl`, in which no question stands twice.

    :param sizes: the number of questions of each split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        for split, size in sizes.items():
            chosen: dict[str, str] = {}
            for prompt, answer in questions(task, split, seed=0):
                chosen.setdefault(prompt, answer)
                if len(chosen) == size:
                    break
            lines = [json.dumps({"prompt": one, "answer": other}) for one, other in chosen.items()]
            (folder / f"{task}_{split}.jsonl").write_text("\n".join(lines) + "\n")
