"""The synthetic suite: a real merge of real networks in which one evaluation takes milliseconds.

A Llama of half a million parameters reads an operation and letters, and writes letters:

- "R abcd =" is the reverse, "RN abcd =" the reverse with every letter moved on by one;
- the base was trained for a short time on all operations and on pairs of them;
- every LoRA expert was trained on one operation, alone and in pairs;
- three pairs were never trained on: the unseen tasks;
- a hash of its text puts a question into train, dev or test.

The base and its 64 experts are trained by `train_synthetic.py`.
"""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch

from benchmarks.suites.anchors import regmean_setting
from benchmarks.suites.controls import random_adapters, shuffled_answers
from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.tasks.readers import split_of

FOLDER = Path.home() / ".cache" / "evox-evogm" / "synthetic"
LETTERS = "abcdefghij"
N_EXPERTS = 64
DEV_EXAMPLES = 160  # of all tasks together, at least
TEST_EXAMPLES, RESAMPLED_TEST_EXAMPLES = 40, 200  # a task


def moved(by: int) -> Callable[[str], str]:
    """Every letter moved on in the alphabet of ten, which closes to a ring."""
    return lambda text: "".join(LETTERS[(LETTERS.index(letter) + by) % 10] for letter in text)


def running(choose: Callable) -> Callable[[str], str]:
    """The largest or smallest letter so far."""
    return lambda text: "".join(choose(text[: end + 1]) for end in range(len(text)))


OPERATIONS: dict[str, Callable[[str], str]] = {
    "R": lambda text: text[::-1],
    "S": lambda text: "".join(sorted(text)),
    "N": moved(1),
    "L": lambda text: text[1:] + text[0],
    "D": lambda text: "".join(sorted(text, reverse=True)),
    "M": lambda text: "".join(LETTERS[9 - LETTERS.index(letter)] for letter in text),
    "W": lambda text: text[-1] + text[1:-1] + text[0],
    "V": moved(-2),
    "I": running(max),
    "Q": lambda text: max(text) * len(text),
    "T": lambda text: text[-1] + text[:-1],
    "P": moved(-1),
    "X": lambda text: "".join(text[i : i + 2][::-1] for i in range(0, len(text), 2)),
    "J": running(min),
    "G": moved(2),
    "Y": lambda text: min(text) * len(text),
    "A": lambda text: text[0] * len(text),
    "Z": lambda text: text[-1] * len(text),
    "B": lambda text: text[0] + text[:-1],
    "C": lambda text: text[1:] + text[-1],
}
UNSEEN = ("RN", "LS", "MW")


def apply(name: str, text: str) -> str:
    """The answer to a question: the operations of `name`, one after another."""
    for letter in name:
        text = OPERATIONS[letter](text)
    return text


def questions(names: list[str], split: str, generator: random.Random) -> Iterator[tuple[str, str]]:
    """Questions of one split and their answers without end, the operations drawn from `names`."""
    while True:
        name = generator.choice(names)
        text = "".join(generator.choices(LETTERS, k=generator.randint(3, 6)))
        question = f"{name} {text} ="
        if split_of(question) == split:
            yield question, apply(name, text)


def make_task(name: str, split: str, count: int, draw: int | None = None) -> Task:
    """`count` different questions, the same at every call with the same draw."""
    key = f"{name} {split}" if draw is None else f"{name} {split} {draw}"
    answers: dict[str, str] = {}
    for question, answer in questions([name], split, random.Random(key)):
        answers[question] = answer
        if len(answers) == count:
            break
    examples = []
    for index, (question, answer) in enumerate(answers.items()):
        examples.append(Example(f"{split} {index}", question, answer))
    version = "synthetic 1" if draw is None else f"synthetic 1, draw {draw}"
    return Task(name, version, "exact_match", tuple(examples))


def tasks(
    n: int, split: str, draw: int | None = None, dev_examples: int | None = None
) -> list[Task]:
    """The operations of the first n experts, of ten at least, and the unseen pairs.

    Test sets are larger with a draw: the less a score depends on its questions, the fewer draws are
    needed.

    :param n: experts. Fewer than ten are scored on the same tasks as ten.
    :param split: `"dev"` or `"test"`.
    :param draw: the number of a set of questions; `None` is the set that is the same for all seeds.
    :param dev_examples: dev questions a task, if not `DEV_EXAMPLES` of all together.
    """
    names = [*list(OPERATIONS)[: max(n, 10)], *UNSEEN]
    if split == "dev":
        count = dev_examples or math.ceil(DEV_EXAMPLES / len(names))
    else:
        count = TEST_EXAMPLES if draw is None else RESAMPLED_TEST_EXAMPLES
    return [make_task(name, split, count, draw) for name in names]


def expert_folders(n: int, folder: Path = FOLDER) -> list[Path]:
    """The first n experts."""
    names = list(OPERATIONS)
    folders = []
    for index in range(n):
        folders.append(folder / "experts" / f"{names[index % len(names)]}{index // len(names)}")
    return folders


def task_of_expert(name: str) -> str:
    """R0 and R1 are experts of R."""
    return name[0]


def make_problem(
    n: int = 10,
    *,
    control: str = "",
    draw: int | None = None,
    regmean: str = "",
    limit: bool = False,
    dev_examples: int | None = None,
    folder: Path = FOLDER,
    **settings,
) -> LoRAMergeProblem:
    """Merges of the first n experts, on dev.

    :param n: experts.
    :param control: `"random"` adapters, `"shuffled"` answers, or `""`; see `controls.py`.
    :param draw: the number of a set of questions; `None` is the set that is the same for all seeds.
    :param regmean: search around the RegMean merge, see `anchors.py`.
    :param limit: search on the test questions themselves. What it finds is beyond a search that
        has other questions.
    :param dev_examples: dev questions a task, if not as many as by default.
    :param folder: of the base and the experts.
    :param settings: of `LoRAMergeProblem`.
    """
    folders = expert_folders(n, folder)
    if not folders[-1].exists():
        raise SystemExit(
            f"{folder}: expected the synthetic suite, found none; "
            "run python -m benchmarks.suites.train_synthetic"
        )
    dev = tasks(n, "dev", draw, dev_examples)
    if control == "shuffled":
        dev = [shuffled_answers(task) for task in dev]
    settings |= regmean_setting(regmean, folders, dev, task_of_expert)
    if limit:
        dev = tasks(n, "test", draw, dev_examples)
    settings = {
        "dtype": torch.float32,
        "batch_tokens": 2_048,
        "candidates_at_once": 64,
        "mode": "merged",
    } | settings
    with random_adapters(folders) if control == "random" else nullcontext(folders) as experts:
        return LoRAMergeProblem(folder / "base", experts, dev, **settings)
