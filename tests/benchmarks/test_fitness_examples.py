"""The examples of scores by a function run on a tiny model, and judge answers rightly."""

from pathlib import Path

import pytest
import torch
import yaml
from builders import build_model, build_tokenizer

from evox_evogm.command.tasks import read_task
from evox_evogm.problems import LoRAMergeProblem

FITNESS = Path(__file__).parents[2] / "benchmarks" / "examples" / "fitness"
NAMES = ["code_tests", "json_validity", "regex_judge"]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_scores_merges_on_dev_and_test(name, make_adapter):
    settings = yaml.safe_load((FITNESS / f"{name}.yaml").read_text())
    (entry,) = settings["tasks"]
    dev, test = read_task(entry, FITNESS)
    folders = [make_adapter("first", seed=1), make_adapter("second", seed=2)]
    problem = LoRAMergeProblem(
        build_model(),
        folders,
        [dev],
        other_tasks=[test],
        tokenizer=build_tokenizer(),
        objectives="outcomes",
    )
    found = problem.evaluate(torch.eye(2))
    assert found.isfinite().all() and found.shape[1] == 1 + len(problem.tasks[0].examples) >= 4
    assert not torch.equal(found[0], found[1]) or name == "json_validity"
    assert problem.score_tasks(torch.ones(2), problem.other_tasks)[dev.name].isfinite().all()


def test_every_example_is_tested():
    assert sorted(path.stem for path in FITNESS.glob("*.py")) == NAMES
    assert (FITNESS / "README.md").is_file()


def module(name):
    """The module of an example, as `evogm` imports it."""
    (entry,) = yaml.safe_load((FITNESS / f"{name}.yaml").read_text())["tasks"]
    return read_task(entry, FITNESS)[0].function.__globals__


def test_valid_json_has_the_keys_and_types():
    is_valid = module("json_validity")["is_valid"]
    right = '{"name": "A", "age": 12, "languages": ["Irish"]}'
    assert is_valid(f" {right} and more")
    wrong = [right.replace("12", '"12"'), right.replace('"Irish"', "{}"), right[:-1], "[1]", "{}"]
    for text in ("", "word", *wrong):
        assert not is_valid(text)


def test_code_passes_the_share_of_its_tests():
    passed = module("code_tests")["passed"]
    tests = ["add(1, 2) == 3", "add(1, 1) == 0"]
    assert passed("def add(a, b):\n", "    return a + b", tests) == 0.5
    assert passed("def add(a, b):\n", "    return", tests) == 0
