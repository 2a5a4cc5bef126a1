"""Controls take away what could be learnt, and nothing else."""

import pytest
import torch

from benchmarks.suites.controls import random_adapters, shuffled_answers
from benchmarks.suites.synthetic import make_task
from evox_evogm.problems import Example, Task
from evox_evogm.problems.adapters.read_adapter import read_expert


def test_random_adapters_have_the_norms_of_those_whose_place_they_take(make_adapter):
    folder = make_adapter("first")
    with random_adapters([folder]) as made:
        other = read_expert(made["first"])
    for name, factors in read_expert(folder).modules.items():
        random = other.modules[name]
        for ours, theirs in ((factors.a, random.a), (factors.b, random.b)):
            assert float(ours.norm()) == pytest.approx(float(theirs.norm()))
            assert not torch.allclose(ours, theirs)


def test_shuffled_answers_are_all_wrong():
    task = make_task("R", "dev", 13)
    targets = {example.target for example in task.examples}
    shuffled = shuffled_answers(task)
    for before, after in zip(task.examples, shuffled.examples, strict=True):
        assert after.prompt == before.prompt
        assert after.target in targets - {before.target}


def test_shuffled_answers_of_a_quiz_are_other_choices():
    choices = (("A", "yes"), ("B", "no"), ("C", "perhaps"))
    examples = tuple(Example(str(i), f"{i}?", "B", choices) for i in range(20))
    shuffled = shuffled_answers(Task("quiz", "1", "choice_likelihood", examples))
    assert {example.target for example in shuffled.examples} == {"A", "C"}


def test_answers_that_are_all_the_same_are_refused():
    examples = tuple(Example(str(i), f"{i}?", "yes") for i in range(2))
    task = Task("quiz", "1", "exact_match", examples)
    message = "task 'quiz': expected different answers to shuffle, found only 'yes'"
    with pytest.raises(ValueError, match=message):
        shuffled_answers(task)
