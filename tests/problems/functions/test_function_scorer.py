"""Merges scored by functions, against plain transformers and peft."""

import math
import random
from types import SimpleNamespace

import pytest
import torch
from builders import build_model
from peft import PeftModel

from evox_evogm.problems import (
    Constraint,
    Example,
    LoRAMergeProblem,
    Objective,
    Racing,
    Task,
    failures,
    fitness_tasks,
)
from evox_evogm.problems import for_population as population_of
from evox_evogm.problems.functions.function_scorer import FitnessFailed, call
from evox_evogm.problems.functions.merged_model import MergedModel
from evox_evogm.problems.inference.stop_texts import cut
from evox_evogm.problems.tasks.metrics import score_task

PROMPTS = {"dev": ["1 + 1 =", "hello"], "test": ["2 + 2 =", "bye", "x"]}
ADD = Task(
    "add", "1", "gold_log_probability", (Example("0", "1+1=", "2"), Example("1", "2+5=", "7"))
)
POINTS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])


@pytest.fixture
def folders(make_adapter):
    settings = {"r": 2, "target_modules": ["up_proj"]}
    return [make_adapter("first", seed=1), make_adapter("second", seed=2, **settings)]


@pytest.fixture
def build(model, tokenizer, folders):
    """A function that builds a problem of tasks."""

    def build(*tasks, **settings):
        return LoRAMergeProblem(model, folders, tasks, tokenizer=tokenizer, **settings)

    return build


def likely(model, split):
    return model.log_probabilities(PROMPTS[split], ["yes"] * len(PROMPTS[split]))


def by_plain_peft(tokenizer, folders, prompts):
    """Log-probabilities of " yes" after prompts: of the base and of each expert alone."""
    rows = []
    for folder in (None, *folders):
        model = build_model()
        model = model if folder is None else PeftModel.from_pretrained(model, folder)
        row = []
        for prompt in prompts:
            start, whole = (tokenizer(text)["input_ids"] for text in (prompt, f"{prompt} yes"))
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            answer = whole[len(start) :]
            row.append(sum(float(logits[len(start) - 1 + i, t]) for i, t in enumerate(answer)))
        rows.append(row)
    return torch.tensor(rows)


@pytest.mark.parametrize("lost", [False, True])
def test_a_function_is_not_blamed_for_a_device_that_computes_nothing_any_more(monkeypatch, lost):
    def fail(merge):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    task, _ = fitness_tasks(fail)
    merge = MergedModel(SimpleNamespace(device=torch.device("cuda")), [1.0])
    monkeypatch.setattr(failures, "is_lost", lambda device: lost and device == merge.device)
    if lost:
        with pytest.raises(RuntimeError, match="illegal memory access"):
            call(task, merge)
    else:
        assert call(task, merge).startswith("RuntimeError: CUDA error: an illegal memory access")


@pytest.mark.parametrize("sizes", [{"dev": 3}, {"dev": 0, "test": 2}, {"dev": 2, "test": 2.0}])
def test_sizes_that_say_nothing_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes: expected whole numbers of at least 1 for dev"):
        fitness_tasks(len, sizes=sizes)


@pytest.mark.parametrize("mode", ["unmerged", "merged"])
@pytest.mark.lengthy
def test_scores_are_those_of_plain_peft(build, tokenizer, folders, mode):
    one_by_one, on_test = fitness_tasks(likely, name="one by one")
    together, _ = fitness_tasks(
        population_of(lambda merges, split: likely(merges, split)), name="together"
    )
    problem = build(one_by_one, together, other_tasks=[on_test], mode=mode, objectives="outcomes")
    assert [len(task.examples) for task in problem.tasks] == [2, 2]
    assert len(problem.other_tasks[0].examples) == 3
    prompts = [*PROMPTS["dev"], *PROMPTS["test"]]
    expected = by_plain_peft(tokenizer, folders, prompts)
    found = problem.evaluate(POINTS)
    torch.testing.assert_close(found[:, 1:3], expected[:, :2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[:, 3:], expected[:, :2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[:, 0], expected[:, :2].mean(1), rtol=1e-4, atol=1e-4)
    tested = problem.score_together(POINTS, [on_test])["one by one"]
    torch.testing.assert_close(tested, expected[:, 2:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["unmerged", "merged"])
def test_the_transformers_model_computes_as_the_merge(build, tokenizer, folders, mode):
    tokens = torch.tensor([tokenizer("hello")["input_ids"]])

    def logit(model):
        return model.model(input_ids=tokens).logits[0, -1, 5]

    found = build(fitness_tasks(logit)[0], mode=mode).evaluate(POINTS)
    for row, folder in ((1, folders[0]), (2, folders[1])):
        plain = PeftModel.from_pretrained(build_model(), folder)
        with torch.no_grad():
            expected = plain(input_ids=tokens).logits[0, -1, 5]
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


def test_greedy_texts_are_those_of_plain_generation(build, tokenizer):
    seen = []

    def texts(model):
        seen.append(model.generate(["hello", "1 +"], max_new_tokens=6))
        return 0.0

    build(fitness_tasks(texts)[0])
    plain = build_model()
    expected = []
    for prompt in ("hello", "1 +"):
        tokens = tokenizer(prompt, return_tensors="pt")
        out = plain.generate(**tokens, max_new_tokens=6, do_sample=False, pad_token_id=0)
        reply = out[0, tokens["input_ids"].shape[1] :]
        expected.append(tokenizer.decode(reply, skip_special_tokens=True))
    assert seen[0] == expected
    assert cut("one. two! three", ["!", "."]) == "one"


def test_functions_mix_with_other_tasks_and_the_cache_knows_them(build):
    calls = []

    def score(model):
        calls.append(model.coefficients)
        return 0.25

    problem = build(ADD, fitness_tasks(score)[0], mode="unmerged")
    plain = build(ADD, mode="unmerged").evaluate(POINTS)
    found = problem.evaluate(POINTS)
    torch.testing.assert_close(found, (plain + 0.25) / 2)
    assert calls == [(0.0, 0.0), *map(tuple, POINTS.tolist())]  # first the base, to learn the size
    assert torch.equal(problem.evaluate(POINTS), found) and len(calls) == 4


def test_margins_count_by_their_sign(build):
    def score(model):
        margins = [model.coefficients[0] - 0.5, 1.0]
        return {"scores": [float(margin > 0) for margin in margins], "margins": margins}

    problem = build(fitness_tasks(score)[0], objectives="outcomes")
    weights, by_sign, _ = problem.outcomes
    assert weights.tolist() == [0.5, 0.5] and by_sign.tolist() == [True, True]
    assert problem.evaluate(POINTS).tolist() == [[0.5, -0.5, 1], [1, 0.5, 1], [0.5, -0.5, 1]]


def test_a_call_that_fails_is_one_merge_that_failed(build, caplog):
    reports = []

    def score(model):
        if model.coefficients[0] == 1:
            return {}["missing"]
        return math.nan if model.coefficients[1] == 1 else 1.0

    problem = build(fitness_tasks(score)[0], on_evaluations=reports.extend)
    assert problem.evaluate(POINTS).tolist() == [1.0, -math.inf, -math.inf]
    reasons = [evaluation.failure for evaluation in reports]
    assert reasons[0] is None
    assert "KeyError: 'missing' (" in reasons[1] and "line" in reasons[1]
    assert reasons[2].endswith("(dev): expected a score that is finite, found nan")
    with pytest.raises(FitnessFailed, match="KeyError"):
        problem.score_together(POINTS)


def test_a_failed_call_for_a_population_is_tried_merge_by_merge(build):
    @population_of
    def score(merges):
        if len(merges) > 1 or merges.coefficients[0, 0] == 1:
            raise RuntimeError("too many")
        return [0.5]

    problem = build(fitness_tasks(score)[0])
    assert problem.evaluate(POINTS).tolist() == [0.5, -math.inf, 0.5]


def test_another_number_of_scores_than_before_is_a_failure(build):
    reports = []

    def score(model):
        return [1.0] * (2 if model.coefficients[0] == 0 else 3)

    problem = build(fitness_tasks(score)[0], on_evaluations=reports.extend)
    problem.evaluate(POINTS)
    assert "expected 2 numbers, as it returned of the base, found 3" in reports[1].failure


def test_an_interruption_is_no_failure(build):
    def score(model):
        if model.coefficients[0] == 1:
            raise KeyboardInterrupt
        return 1.0

    problem = build(fitness_tasks(score)[0], mode="merged")
    with pytest.raises(KeyboardInterrupt):
        problem.evaluate(POINTS)
    restored = problem.language_model.model.state_dict()
    for name, value in build_model().state_dict().items():
        assert torch.equal(restored[name], value)


@pytest.mark.parametrize("returned", ["text", None, math.nan, [[1.0]], []])
def test_what_is_no_score_of_the_base_is_refused_at_once(build, returned):
    with pytest.raises(ValueError, match="it was called with the base"):
        build(fitness_tasks(lambda model: returned)[0])


def test_every_merge_meets_the_same_random_numbers_and_the_search_keeps_its_own(build):
    def score(model):
        return [torch.rand(()), random.random()]

    problem = build(fitness_tasks(score)[0], objectives="outcomes")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    found = problem.evaluate(POINTS)
    assert (found == found[0]).all()
    assert torch.equal(torch.rand(3), expected)


def test_options_and_split_are_arguments(build):
    def score(model, split, scale):
        return scale * len(split)

    dev, test = fitness_tasks(score, options={"scale": 2.0})
    problem = build(dev, other_tasks=[test])
    assert problem.evaluate(POINTS[:1]).tolist() == [6.0]
    assert problem.score_tasks(POINTS[0], [test])["score"].tolist() == [8.0]
    with pytest.raises(ValueError, match="missing a required argument: 'scale'"):
        fitness_tasks(score)


def test_a_model_can_be_scored_as_it_is(build):
    problem = build(ADD)
    for function in (likely, population_of(lambda merges, split: likely(merges, split))):
        dev, _ = fitness_tasks(function)
        found = score_task(dev, problem.language_model)
        expected = build(dev).score_tasks(torch.zeros(2))[dev.name]
        torch.testing.assert_close(found, expected)


def test_racing_and_gradients_are_refused_in_a_sentence(build):
    dev, _ = fitness_tasks(likely)
    with pytest.raises(
        ValueError, match="racing: expected tasks with examples, found the function"
    ):
        build(dev, racing=Racing())
    with pytest.raises(ValueError, match="expected a task with derivatives for gradients"):
        build(dev, objectives="gradients")


def test_only_memory_that_torch_runs_out_of_makes_batches_smaller(build):
    def own(model):
        if model.coefficients[0] == 1:
            raise MemoryError("of a list")
        return 0.5

    problem = build(fitness_tasks(own)[0], batch_tokens=64)
    assert problem.evaluate(POINTS).tolist() == [0.5, -math.inf, 0.5]
    assert problem.language_model.batch_tokens == 64

    def of_torch(model):
        if model.coefficients[0] == 1 and problem.language_model.batch_tokens > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.25

    problem = build(fitness_tasks(of_torch)[0], batch_tokens=64)
    assert problem.evaluate(POINTS).tolist() == [0.25] * 3
    assert problem.language_model.batch_tokens == 16


def test_split_is_no_option():
    with pytest.raises(ValueError, match="expected options without split, .*, found 'dev'"):
        fitness_tasks(likely, options={"split": "dev"})


def test_a_merge_that_breaks_a_constraint_has_one_score_before_and_after_a_resume(build):
    """What the function returns is known only then: scores of 0 or 1, so that the floor is 0."""

    def score(model):
        right = model.coefficients[0] <= 0
        return {"scores": [float(right), 0.0], "margins": [1.0 if right else -1.0, -1.0]}

    objective = Objective(constraints=(Constraint("score", least=0.25),))
    first = build(fitness_tasks(score)[0], objective=objective)
    sizes = {"dev": 2, "test": 2}
    later = build(fitness_tasks(score, sizes=sizes, margins=True)[0], objective=objective)
    for problem in (first, later):
        assert problem.evaluate(POINTS).tolist() == [0.5, -0.25, 0.5]
        assert problem.cache.objective == problem.objective
