"""The synthetic suite, with a base and experts that were never trained."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from benchmarks.static_merges.dense import merged_weights
from benchmarks.static_merges.methods import static_methods
from benchmarks.static_merges.settings import LoadedSuite
from benchmarks.suites import synthetic
from benchmarks.suites.anchors import REGMEANS
from benchmarks.suites.suite import SUITES
from benchmarks.suites.synthetic import make_task
from benchmarks.suites.train_synthetic import build_base, build_tokenizer
from evox_evogm.problems.tasks.readers import split_of

N = 3


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """The folder of the suite."""
    folder = tmp_path_factory.mktemp("synthetic")
    build_base().save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "base")
    for seed, path in enumerate(synthetic.expert_folders(N, folder)):
        base = build_base()  # which seeds
        torch.manual_seed(seed)
        config = LoraConfig(
            r=2,
            target_modules=["q_proj", "down_proj"],
            init_lora_weights=False,
            task_type="CAUSAL_LM",
        )
        get_peft_model(base, config).save_pretrained(path)
    return folder


def answers(problem):
    found = {}
    for task in problem.tasks:
        found |= {(task.name, example.prompt): example.target for example in task.examples}
    return found


def prompts(split, draw):
    return {example.prompt for example in make_task("R", split, 13, draw).examples}


def margins_of(problem):
    margins = {}
    problem.score_together(torch.full((1, N), 0.5), margins=margins)
    return margins


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("R", "abcd", "dcba"),
        ("N", "ajb", "bac"),
        ("RN", "abc", "dcb"),
        ("LS", "cba", "abc"),
        ("X", "abcde", "badce"),
    ],
)
def test_its_answers_are_those_of_its_operations(name, text, answer):
    assert synthetic.apply(name, text) == answer


def test_its_questions_are_those_of_their_split():
    for split in ("dev", "test"):
        for task in synthetic.tasks(N, split, 5):
            assert {split_of(example.prompt) for example in task.examples} == {split}


def test_a_draw_of_questions_is_always_the_same_and_other_draws_differ():
    assert prompts("dev", 3) == prompts("dev", 3)
    assert len({frozenset(prompts("dev", draw)) for draw in (None, 3, 4)}) == 3


def test_no_dev_question_is_in_test():
    assert not prompts("dev", 3) & (prompts("test", 3) | prompts("test", 4))


def test_a_draw_has_other_questions_for_the_same_experts(suite):
    first = synthetic.make_problem(N, draw=3, folder=suite)
    same = synthetic.make_problem(N, draw=3, folder=suite)
    other = synthetic.make_problem(N, draw=4, folder=suite)
    assert answers(first) == answers(same)
    assert answers(first).keys() != answers(other).keys()
    assert first.n_experts == N
    assert [task.name for task in first.tasks][-3:] == list(synthetic.UNSEEN)
    margins, margins_again, other_margins = map(margins_of, (first, same, other))
    for task, values in margins.items():
        assert torch.equal(values, margins_again[task])
        assert not torch.equal(values, other_margins[task])


def test_shuffled_answers_are_wrong_ones_and_random_experts_other_ones(suite):
    plain = synthetic.make_problem(N, folder=suite)
    shuffled = synthetic.make_problem(N, control="shuffled", folder=suite)
    random = synthetic.make_problem(N, control="random", folder=suite)
    right, wrong = answers(plain), answers(shuffled)
    assert answers(random) == right
    assert wrong.keys() == right.keys()
    assert all(wrong[key] != right[key] for key in right)
    for ours, theirs in zip(plain.experts, random.experts, strict=True):
        for name, factors in ours.modules.items():
            assert not torch.equal(factors.a, theirs.modules[name].a)


def test_around_regmean_every_expert_is_regressed_on_its_own_operation(suite):
    given = synthetic.make_problem(N, folder=suite)
    regressed = synthetic.make_problem(N, regmean="tasks", folder=suite)
    assert regressed.regressed
    assert not given.regressed
    lb, ub = regressed.box
    torch.testing.assert_close((lb + ub) / 2, torch.full((N,), 1 - 1 / N))
    for ours, theirs in zip(given.experts, regressed.experts, strict=True):
        for name, factors in ours.modules.items():
            assert torch.equal(factors.b, theirs.modules[name].b)
            assert not torch.equal(factors.a, theirs.modules[name].a)


def test_the_limit_searches_the_test_questions_around_the_same_merge(suite, monkeypatch):
    """In the limit nothing is known of dev but what RegMean reads."""
    load = partial(synthetic.make_problem, N, draw=1, dev_examples=2, folder=suite)
    monkeypatch.setattr(synthetic, "RESAMPLED_TEST_EXAMPLES", 3)
    limit, searched = load(regmean="tasks", limit=True), load(regmean="tasks")
    test = synthetic.tasks(N, "test", 1, 2)
    assert answers(limit) == answers(SimpleNamespace(tasks=test)) != answers(searched)
    for ours, theirs in zip(limit.experts, searched.experts, strict=True):
        for name, factors in ours.modules.items():
            assert torch.equal(factors.a, theirs.modules[name].a)


def test_the_sum_of_regressed_experts_is_the_regmean_merge_of_weights(suite, monkeypatch):
    made_here = replace(
        SUITES["synthetic"], make_problem=partial(synthetic.make_problem, folder=suite)
    )
    monkeypatch.setitem(SUITES, "synthetic", made_here)
    loaded = LoadedSuite("synthetic", N, dev_examples=2)
    assert {len(task.examples) for task in loaded.dev} == {2}
    dense = {}
    monkeypatch.setattr(loaded, "dense", lambda name, weights: dense.update({name: weights}))
    list(static_methods(None)["RegMean"](loaded))
    sums = {}
    for kind in REGMEANS:
        sums[kind] = merged_weights(loaded.around_regmean(kind), torch.ones(N))
        (setting,) = static_methods(None)[f"RegMean on {kind}"](loaded)
        assert setting.score(loaded.dev).keys() == {task.name for task in loaded.dev}
    base = merged_weights(loaded.problem, torch.zeros(N))
    expected = dense["off-diagonals x 0.9"]
    distances = {}  # from the merge of weights, the greatest of all modules
    for kind, merge in sums.items():
        relative = []
        for name, weights in merge.items():
            delta = expected[name] - base[name]
            relative.append(float((weights - expected[name]).norm() / delta.norm()))
        distances[kind] = max(relative)
    assert distances["tasks"] < 1e-3
    assert min(distances["prompts"], distances["weights"]) > 0.05, distances


def test_a_suite_that_was_not_trained_is_refused(tmp_path):
    message = "expected the synthetic suite, found none; run python -m benchmarks.suites.train_syn"
    with pytest.raises(SystemExit, match=message):
        synthetic.make_problem(2, folder=tmp_path)
