"""The choice between the modes: passes counted without making them, rates measured, and what is
chosen from them.
"""

import logging
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from builders import build_model, record_passes
from torch.utils._python_dispatch import TorchDispatchMode

from evox_evogm.problems import Example, LoRAMergeProblem, Task, cost_model
from evox_evogm.problems.cost_model import (
    Passes,
    Rate,
    Rates,
    _random_batch,
    count_passes,
    measure_rates,
    predict,
)
from evox_evogm.problems.inference.forward import Forward
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.measure_batches import RandomBatches
from evox_evogm.problems.tasks.metrics import score_tasks

pytestmark = pytest.mark.language_model

LOGGER = "evox_evogm.problems.mode_choice"
EXAMPLES = (
    Example("0", "ask", "zzz"),
    Example("1", "ask me", "zzz"),
    Example("2", "ask me now", "zzz"),
)
LIKELIHOOD = Task("likelihood", "1", "gold_log_probability", EXAMPLES)
DECODED = Task("decoded", "1", "exact_match", EXAMPLES, match="last_10_words", max_new_tokens=5)


@pytest.fixture
def endless_tokenizer(tokenizer):
    """A tokenizer whose end of text is outside the vocabulary of `build_model`: no text ends."""
    tokenizer = deepcopy(tokenizer)
    tokenizer.pad_token = "<end>"
    tokenizer.add_special_tokens({"eos_token": "<never>"})
    assert tokenizer.eos_token_id == 257
    return tokenizer


def score(tasks, model, candidates):
    margins = {task.name: torch.zeros(candidates, len(task.examples)) for task in tasks}
    return score_tasks(tasks, model, candidates, margins)


@pytest.mark.parametrize("task", [LIKELIHOOD, DECODED], ids=lambda task: task.name)
@pytest.mark.parametrize("candidates", [1, 4])
@pytest.mark.parametrize("batch_tokens", [20, 2048])
def test_counted_passes_are_those_that_scoring_makes(
    endless_tokenizer, task, candidates, batch_tokens
):
    base = build_model()
    base.generation_config.eos_token_id = None
    model = LanguageModel(base, endless_tokenizer, batch_tokens=batch_tokens)
    counted = count_passes([task], model, candidates)
    made = record_passes(model)
    score([task], model, candidates)
    sizes = [rows * width for rows, width in made]
    assert sorted([*counted.prompts, *counted.steps]) == sorted(sizes)
    assert bool(counted.steps) == (task is DECODED)


def test_counting_computes_nothing_and_leaves_the_model_as_it_was(tokenizer):
    model = LanguageModel(build_model(), tokenizer)
    made = record_passes(model)
    forward = model.forward
    count_passes([LIKELIHOOD, DECODED], model, 4)
    assert made == [] and model.forward is forward


def test_the_seconds_of_passes_are_those_of_prompts_and_of_steps():
    rates = Rates({"merged": Rate(2.0, 0.25)}, {"merged": Rate(5.0, 1.0)}, load=0.125)
    passes = Passes(prompts=(8, 16, 4), steps=(3, 2))
    assert rates.seconds("merged", passes) == 3 * 2.0 + 28 * 0.25 + 2 * 5.0 + 5 * 1.0


def test_the_prediction_adds_up_passes(tokenizer):
    model = LanguageModel(build_model(), tokenizer, batch_tokens=2048)
    rates = Rates(
        {"unmerged": Rate(3.0, 0.5), "merged": Rate(2.0, 0.25)},
        {"unmerged": Rate(7, 1), "merged": Rate(5, 1)},
        load=0.125,
    )
    together = count_passes([DECODED], model, 4)
    alone = count_passes([DECODED], model)
    assert len(alone.prompts) == 1 and len(together.steps) == len(alone.steps) == 4
    found = predict(rates, [DECODED], model, 4)
    unmerged = 3 * len(together.prompts) + 0.5 * sum(together.prompts)
    unmerged += 7 * 4 + sum(together.steps)
    assert found["unmerged"] == pytest.approx(unmerged)
    merged_alone = 2 + 0.25 * sum(alone.prompts) + 5 * 4 + sum(alone.steps)
    assert found["merged"] == pytest.approx(4 * merged_alone)


@pytest.fixture
def make_problem(tokenizer, make_adapter):
    folders = [make_adapter("first", seed=1), make_adapter("second", seed=2, r=2)]

    def make(**settings):
        tasks = [LIKELIHOOD, DECODED]
        return LoRAMergeProblem(build_model(), folders, tasks, tokenizer=tokenizer, **settings)

    return make


def weights_of(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def assert_weights_are(model, expected):
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_measuring_leaves_the_model_as_it_was_and_gives_rates_above_0(make_problem):
    problem = make_problem()
    model = problem.language_model
    before = weights_of(model.model)
    rates = measure_rates(model, problem.stacked, problem.scorer.weight_merger, 2)
    assert_weights_are(model.model, before)
    assert not any(module._forward_hooks for module in model.model.modules())
    assert rates.load > 0
    for rate_by_mode in (rates.prompts, rates.steps):
        assert set(rate_by_mode) == {"unmerged", "merged"}
        assert all(rate.seconds([64]) > 0 for rate in rate_by_mode.values())


class RowsOfVocabulary(TorchDispatchMode):
    """Notes over how many rows of a vocabulary an operation reduces at most."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary = vocabulary
        self.most = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        reduces = operator.__name__.partition(".")[0] in ("argmax", "logsumexp", "topk")
        if reduces and args[0].shape[-1] == self.vocabulary:
            self.most = max(self.most, args[0].numel() // self.vocabulary)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("task", [LIKELIHOOD, DECODED], ids=lambda task: task.name)
def test_counting_never_computes_a_vocabulary_for_each_position(endless_tokenizer, task):
    base = build_model()
    base.generation_config.eos_token_id = None
    many = replace(task, examples=tuple(Example(str(i), "ask", "zzz") for i in range(40)))
    model = LanguageModel(base, endless_tokenizer)
    with RowsOfVocabulary(base.config.vocab_size) as rows:
        count_passes([many], model, 3)
    assert rows.most == 1


def test_random_tokens_have_a_row_in_the_embedding(make_problem):
    problem = make_problem()
    model = problem.language_model
    assert model.known_tokens == min(model.tokenizer.vocab_size, model.limits.vocabulary)
    model.limits = replace(model.limits, vocabulary=5)
    assert int(RandomBatches(model, 1).row.max()) < 5
    _, tokens, _ = _random_batch(model, 8)
    assert int(tokens.max()) < 5


def test_a_busy_moment_does_not_slow_one_mode_alone(make_problem, monkeypatch):
    """The first two of all times are long; by the least of the rounds the modes cost the same."""
    problem = make_problem()
    model = problem.language_model
    seconds = iter([9.0, 9.0])
    monkeypatch.setattr(cost_model, "_seconds_of", lambda work, device: next(seconds, 1.0))
    rates = measure_rates(model, problem.stacked, problem.scorer.weight_merger, 2)
    assert rates.load == 1
    assert rates.prompts["merged"] == rates.prompts["unmerged"]
    assert rates.steps["merged"] == rates.steps["unmerged"]


class FailingForward(Forward):
    def __call__(self, *inputs, **named):
        raise torch.OutOfMemoryError("no room")


def test_an_interrupted_measurement_leaves_the_model_as_it_was(make_problem):
    problem = make_problem()
    model = problem.language_model
    before = weights_of(model.model)
    failing = model.with_forward(FailingForward(model.model))
    with pytest.raises(torch.OutOfMemoryError):
        measure_rates(failing, problem.stacked, problem.scorer.weight_merger, 2)
    assert_weights_are(model.model, before)


def test_what_cannot_be_measured_is_unmerged(make_problem, caplog):
    problem = make_problem()
    model = problem.language_model
    model.forward = FailingForward(model.model)
    with caplog.at_level(logging.INFO, LOGGER):
        problem.choose_modes(4)
    assert set(problem.modes.values()) == {"unmerged"}
    assert "could not be measured: OutOfMemoryError: no room" in caplog.text


def test_layers_that_candidates_share_count_in_part(tokenizer):
    model = LanguageModel(build_model(num_hidden_layers=4), tokenizer)
    plain = sum(count_passes([LIKELIHOOD], model, 4).prompts)
    shared = sum(count_passes([LIKELIHOOD], model, 4, shared_layers=2).prompts)
    assert shared == pytest.approx(plain * (1 - 3 / 4 * 2 / 4))


def make_rates(unmerged, merged_in_weights, load):
    """The same rates for prompts and for steps."""
    by_mode = {"unmerged": unmerged, "merged": merged_in_weights}
    return Rates(by_mode, by_mode, load)


def test_scores_of_one_merge_do_not_decide_for_a_population(make_problem):
    problem = make_problem()
    problem.scorer.rates = make_rates(Rate(0.02, 0.0011), Rate(0.01, 0.001), load=0.005)
    problem.score_tasks(torch.rand(2))
    assert problem.modes == {}
    problem.choose_modes(50)
    assert problem.modes == {"likelihood": "unmerged", "decoded": "unmerged"}


@pytest.mark.parametrize(("load", "chosen"), [(100.0, "unmerged"), (0.0, "merged")])
def test_the_cheaper_mode_is_chosen_once_per_task_and_the_log_says_why(
    make_problem, caplog, load, chosen
):
    problem = make_problem()
    problem.scorer.rates = make_rates(Rate(0.5, 0.01), Rate(0.01, 0.001), load)
    with caplog.at_level(logging.INFO, LOGGER):
        problem.evaluate(torch.rand(3, 2))
        problem.evaluate(torch.rand(2, 2))
    assert problem.modes == {"likelihood": chosen, "decoded": chosen}
    said = [record.getMessage().split(";")[0] for record in caplog.records]
    assert said == [f"task likelihood: {chosen}", f"task decoded: {chosen}"]
    assert "expected for 3 candidates: unmerged" in caplog.text


@pytest.mark.parametrize(("difference", "chosen"), [(-0.01, "merged"), (0.01, "unmerged")])
def test_weights_are_changed_once_for_all_tasks(make_problem, difference, chosen):
    problem = make_problem()
    rates = make_rates(Rate(0.5, 0.01), Rate(0.01, 0.001), load=0.0)
    saved = []
    for task in problem.tasks:
        seconds = predict(rates, [task], problem.language_model, 3)
        saved.append(seconds["unmerged"] - seconds["merged"])
    assert min(saved) > 0
    problem.scorer.rates = replace(rates, load=sum(saved) / 3 + difference)
    problem.choose_modes(3)
    assert set(problem.modes.values()) == {chosen}


def test_passes_that_tasks_share_are_counted_once(tokenizer):
    model = LanguageModel(build_model(), tokenizer, batch_tokens=2048)
    tasks = [LIKELIHOOD, replace(LIKELIHOOD, name="other")]
    counted = count_passes(tasks, model)
    alone = count_passes([LIKELIHOOD], model)
    made = record_passes(model)
    score(tasks, model, 1)
    sizes = [rows * width for rows, width in made]
    assert sorted(counted.prompts) == sorted(sizes)
    assert sum(sizes) < 2 * sum(alone.prompts)


def test_a_copy_over_max_memory_is_not_considered(make_problem, caplog):
    problem = make_problem(max_memory=1000)
    with caplog.at_level(logging.INFO, LOGGER):
        problem.choose_modes(4)
    assert set(problem.modes.values()) == {"unmerged"} and problem.scorer.rates is None
    assert "over half of max_memory" in caplog.text


def test_a_run_can_be_repeated_with_the_modes_of_an_earlier_one(make_problem):
    first = make_problem()
    pop = torch.rand(3, 2)
    scores = first.evaluate(pop)
    assert torch.equal(make_problem(mode=first.modes).evaluate(pop), scores)
