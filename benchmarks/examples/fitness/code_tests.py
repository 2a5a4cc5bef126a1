"""Merges that write Python: the share of unit tests that their functions pass.

    evogm merge code_tests.yaml --out runs/code

Every function runs in a process of its own, with limits of time and memory. The log-probability of
a reference solution is added with a small weight, so that merges differ before the first test is
passed.
"""

from evox_evogm.problems import run_python

SOLVED = 'def double(n):\n    """Return two times n."""\n    return 2 * n\n\n\n'
TASKS = {  # the beginning of a function, its solution, and tests
    "dev": [
        (
            'def add(a, b):\n    """Return the sum of a and b."""\n',
            "    return a + b",
            ["add(1, 2) == 3", "add(-1, 1) == 0"],
        ),
        (
            'def last(items):\n    """Return the last item."""\n',
            "    return items[-1]",
            ["last([1, 2]) == 2", "last('ab') == 'b'"],
        ),
        (
            'def is_even(n):\n    """Return whether n is even."""\n',
            "    return n % 2 == 0",
            ["is_even(4)", "not is_even(7)"],
        ),
    ],
    "test": [
        (
            'def square(n):\n    """Return n times n."""\n',
            "    return n * n",
            ["square(3) == 9", "square(-2) == 4"],
        ),
        (
            'def first(items):\n    """Return the first item."""\n',
            "    return items[0]",
            ["first([1, 2]) == 1", "first('ab') == 'a'"],
        ),
        (
            'def negate(n):\n    """Return minus n."""\n',
            "    return -n",
            ["negate(2) == -2", "negate(-5) == 5"],
        ),
    ],
}


def passed(start: str, written: str, tests: list[str]) -> float:
    """The share of tests that a function passes."""
    runs = []
    for test in tests:
        runs.append(run_python(f"{start}{written}\n\nassert {test}\n", seconds=2, megabytes=256))
    return sum(run.passed for run in runs) / len(tests)


def score(model, split: str, hint: float = 0.01) -> list[float]:
    """:return: for each function the share of tests passed, and `hint` times a log-probability."""
    prompts = [SOLVED + start for start, _, _ in TASKS[split]]
    written = model.generate(prompts, max_new_tokens=24, stop=["\n\n", "\ndef "])
    solutions = [solution for _, solution, _ in TASKS[split]]
    likely = model.log_probabilities(prompts, solutions).tolist()
    scores = []
    for (start, solution, tests), text, nats in zip(TASKS[split], written, likely, strict=True):
        scores.append(passed(start, text, tests) + hint * nats / len(solution))
    return scores
