"""The small level of `compare.py`, with a base and experts that were never trained."""

import pytest
import small_level
import torch
from peft import LoraConfig, get_peft_model

from evox_evogm.problems.tasks.readers import split_of

N = 3


@pytest.fixture(scope="module")
def level(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small_level")
    small_level.build_base().save_pretrained(folder / "base")
    small_level.build_tokenizer().save_pretrained(folder / "base")
    for seed, path in enumerate(small_level.expert_folders(N, folder)):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=2,
            target_modules=["q_proj", "down_proj"],
            init_lora_weights=False,
            task_type="CAUSAL_LM",
        )
        get_peft_model(small_level.build_base(), config).save_pretrained(path)
    return folder


def answers(problem):
    return {
        (task.name, example.prompt): example.target
        for task in problem.tasks
        for example in task.examples
    }


def test_its_answers_are_those_of_its_operations_and_its_questions_of_their_split():
    expected = {
        "R abcd =": "dcba",
        "N ajb =": "bac",
        "RN abc =": "dcb",
        "LS cba =": "abc",
        "X abcde =": "badce",
    }
    for question, answer in expected.items():
        name, text, _ = question.split()
        for letter in name:
            text = small_level.OPERATIONS[letter](text)
        assert text == answer, question
    for split in ("dev", "test"):
        for task in small_level.tasks(N, split, 5):
            assert {split_of(example.prompt) for example in task.examples} == {split}


def test_a_draw_has_other_questions_for_the_same_experts(level):
    first, same, other = (
        small_level.make_problem(N, draw=draw, folder=level) for draw in (3, 3, 4)
    )
    assert answers(first) == answers(same) and answers(first).keys() != answers(other).keys()
    assert first.n_experts == N and [task.name for task in first.tasks][-3:] == list(
        small_level.UNSEEN
    )
    found = [{}, {}, {}]
    for problem, margins in zip((first, same, other), found, strict=True):
        problem.score_together(torch.full((1, N), 0.5), margins=margins)
    for task, margins in found[0].items():
        assert torch.equal(margins, found[1][task]) and not torch.equal(margins, found[2][task])


def test_shuffled_answers_are_wrong_ones_and_random_experts_other_ones(level):
    plain, shuffled, random = (
        small_level.make_problem(N, control=name, folder=level)
        for name in ("", "shuffled", "random")
    )
    assert answers(shuffled).keys() == answers(plain).keys() == answers(random).keys()
    assert answers(random) == answers(plain)
    assert all(answers(shuffled)[key] != answer for key, answer in answers(plain).items())
    for ours, theirs in zip(plain.experts, random.experts, strict=True):
        for name, factors in ours.modules.items():
            assert not torch.equal(factors.a, theirs.modules[name].a)


def test_around_regmean_every_expert_is_regressed_on_its_own_operation(level):
    given, regressed = (
        small_level.make_problem(N, regmean=regmean, folder=level) for regmean in (False, True)
    )
    assert regressed.regressed and not given.regressed
    lb, ub = regressed.box
    torch.testing.assert_close((lb + ub) / 2, torch.full((N,), 1 - 1 / N))
    for ours, theirs in zip(given.experts, regressed.experts, strict=True):
        for name, factors in ours.modules.items():
            assert torch.equal(factors.b, theirs.modules[name].b) and not torch.equal(
                factors.a, theirs.modules[name].a
            )


def test_a_level_that_was_not_built_is_refused(tmp_path):
    with pytest.raises(
        SystemExit,
        match="expected the small level there, found none; run python benchmarks/small_level.py",
    ):
        small_level.make_problem(2, folder=tmp_path)
