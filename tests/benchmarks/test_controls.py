"""Controls take away what could be learnt, and nothing else."""

import pytest
import torch
from controls import random_adapters, shuffled_answers
from small_level import make_task

from evox_evogm.problems import Example, Task
from evox_evogm.problems.adapters.read_adapter import read_expert


def test_random_adapters_have_the_norms_of_those_whose_place_they_take(make_adapter):
    folder = make_adapter("first")
    with random_adapters([folder]) as made:
        other = read_expert(made["first"])
    expert = read_expert(folder)
    for name, factors in expert.modules.items():
        for mine, theirs in (
            (factors.a, other.modules[name].a),
            (factors.b, other.modules[name].b),
        ):
            assert float(mine.norm()) == pytest.approx(float(theirs.norm())) and not torch.allclose(
                mine, theirs
            )


def test_shuffled_answers_are_all_wrong():
    task = make_task("R", "dev", 13)
    shuffled = shuffled_answers(task)
    targets = {example.target for example in task.examples}
    for before, after in zip(task.examples, shuffled.examples, strict=True):
        assert after.prompt == before.prompt and after.target in targets - {before.target}
    choices = (("A", "yes"), ("B", "no"), ("C", "perhaps"))
    quiz = Task(
        "quiz",
        "1",
        "choice_likelihood",
        tuple(Example(str(i), f"{i}?", "B", choices) for i in range(20)),
    )
    assert {example.target for example in shuffled_answers(quiz).examples} == {"A", "C"}
