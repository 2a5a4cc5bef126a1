"""The choice between the paths: passes counted without making them, rates measured, and what is chosen from them."""

import logging
from dataclasses import replace

import pytest
import torch
from builders import build_model

from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.cost_model import Rate, Rates, count_passes, measure_rates, predict
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.lora_merge import default_dtype
from evox_evogm.problems.tasks.metrics import score_task, score_tasks

EXAMPLES = tuple(
    Example(str(i), prompt, "zzz") for i, prompt in enumerate(("ask", "ask me", "ask me now"))
)
LIKELIHOOD = Task("likelihood", "1", "gold_log_probability", EXAMPLES)
DECODED = Task("decoded", "1", "exact_match", EXAMPLES, match="last_10_words", max_new_tokens=5)


def made_passes(model: LanguageModel, run) -> list[int]:
    """The tokens of the passes that are really made."""
    forward, seen = model._forward, []
    model._forward = lambda asked, tokens, *rest, **more: (
        seen.append(tokens.numel()) or forward(asked, tokens, *rest, **more)
    )
    run()
    del model._forward
    return seen


@pytest.mark.parametrize("task", [LIKELIHOOD, DECODED], ids=lambda task: task.name)
@pytest.mark.parametrize("candidates", [None, 4])
@pytest.mark.parametrize("batch_tokens", [20, 2048])
def test_counted_passes_are_those_that_scoring_makes(
    tokenizer, monkeypatch, task, candidates, batch_tokens
):
    monkeypatch.setattr(
        LanguageModel, "end_token", property(lambda self: 300)
    )  # outside the vocabulary: no text ends
    model = LanguageModel(build_model(), tokenizer, batch_tokens=batch_tokens)
    counted = count_passes([task], model, candidates)
    margins = {task.name: torch.zeros(candidates or 1, len(EXAMPLES))}
    made = made_passes(
        model,
        lambda: (
            score_task(task, model)
            if candidates is None
            else score_tasks([task], model, candidates, margins)
        ),
    )
    assert sorted([*counted.prompts, *counted.steps]) == sorted(made)
    assert bool(counted.steps) == (task is DECODED)


def test_the_prediction_adds_up_passes(tokenizer):
    model = LanguageModel(build_model(), tokenizer, batch_tokens=2048)
    rates = Rates(
        {"unmerged": Rate(3.0, 0.5), "merged": Rate(2.0, 0.25)},
        {"unmerged": Rate(7, 1), "merged": Rate(5, 1)},
        load=0.125,
    )
    together, alone = count_passes([DECODED], model, 4), count_passes([DECODED], model)
    assert len(alone.prompts) == 1 and len(together.steps) == len(alone.steps) == 4
    found = predict(rates, [DECODED], model, 4)
    assert found["unmerged"] == pytest.approx(
        3 * len(together.prompts) + 0.5 * sum(together.prompts) + 7 * 4 + sum(together.steps)
    )
    assert found["merged"] == pytest.approx(
        4 * (2 + 0.25 * sum(alone.prompts) + 5 * 4 + sum(alone.steps))
    )


@pytest.fixture
def make_problem(tokenizer, make_adapter):
    folders = [make_adapter("first", seed=1), make_adapter("second", seed=2, r=2)]

    def make(**settings):
        return LoRAMergeProblem(
            build_model(), folders, [LIKELIHOOD, DECODED], tokenizer=tokenizer, **settings
        )

    return make


def test_measuring_leaves_the_model_as_it_was_and_gives_rates_above_0(make_problem):
    problem = make_problem()
    model = problem.language_model
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    rates = measure_rates(model, problem.stacked, problem._weight_merger(), 2)
    assert all(
        torch.equal(weight, before[name]) for name, weight in model.model.state_dict().items()
    )
    assert not any(module._forward_hooks for module in model.model.modules())
    assert rates.load > 0
    for by_path in (rates.prompts, rates.steps):
        assert all(rate.seconds([64]) > 0 for rate in by_path.values())


def test_an_interrupted_measurement_leaves_the_model_as_it_was(make_problem, monkeypatch):
    problem = make_problem()
    model = problem.language_model.model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    monkeypatch.setattr(
        problem._weight_merger(), "load", lambda c, load=problem._merger.load: (load(c), 1 / 0)
    )
    with pytest.raises(ZeroDivisionError):
        measure_rates(problem.language_model, problem.stacked, problem._merger, 2)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_what_cannot_be_measured_is_unmerged(make_problem, monkeypatch, caplog):
    problem = make_problem()
    monkeypatch.setattr(
        problem.language_model,
        "_forward",
        lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")),
    )
    with caplog.at_level(logging.INFO, "evox_evogm.problems.lora_merge"):
        problem.choose_modes(4)
    assert (
        set(problem.modes.values()) == {"unmerged"}
        and "could not be measured: OutOfMemoryError: no room" in caplog.text
    )


def test_layers_that_candidates_share_count_in_part(tokenizer):
    model = LanguageModel(build_model(num_hidden_layers=4), tokenizer)
    plain, shared = (sum(count_passes([LIKELIHOOD], model, 4, layers).prompts) for layers in (0, 2))
    assert shared == pytest.approx(plain * (1 - 3 / 4 * 2 / 4))


def test_scores_of_one_merge_do_not_decide_for_a_population(make_problem):
    problem = make_problem()
    line, slower = Rate(0.01, 0.001), Rate(0.02, 0.0011)
    problem.rates = Rates(
        {"unmerged": slower, "merged": line}, {"unmerged": slower, "merged": line}, 0.005
    )
    problem.score_tasks(torch.rand(2))
    assert problem.modes == {}
    problem.choose_modes(50)
    assert problem.modes == {"likelihood": "unmerged", "decoded": "unmerged"}


@pytest.mark.parametrize(("put", "chosen"), [(100.0, "unmerged"), (0.0, "merged")])
def test_the_cheaper_path_is_chosen_once_per_task_and_the_log_says_why(
    make_problem, caplog, put, chosen
):
    problem = make_problem()
    line = Rate(0.01, 0.001)
    slower = Rate(0.5, 0.01)
    problem.rates = Rates(
        {"unmerged": slower, "merged": line}, {"unmerged": slower, "merged": line}, put
    )
    with caplog.at_level(logging.INFO, "evox_evogm.problems.lora_merge"):
        problem.evaluate(torch.rand(3, 2))
        problem.evaluate(torch.rand(2, 2))
    assert problem.modes == {"likelihood": chosen, "decoded": chosen}
    said = [record.getMessage().split(";")[0] for record in caplog.records]
    assert said == [f"task likelihood: {chosen}", f"task decoded: {chosen}"]
    assert "expected for 3 candidates of 1 tasks that share batches: unmerged" in caplog.text


def test_weights_are_changed_once_for_all_tasks(make_problem):
    problem = make_problem()
    model, line, slower = problem.language_model, Rate(0.01, 0.001), Rate(0.5, 0.01)
    problem.rates = rates = Rates(
        {"unmerged": slower, "merged": line}, {"unmerged": slower, "merged": line}, load=0.0
    )
    saved = [
        values["unmerged"] - values["merged"]
        for values in (predict(rates, [t], model, 3) for t in problem.tasks)
    ]
    assert min(saved) > 0
    for put, chosen in ((sum(saved) / 3 - 0.01, "merged"), (sum(saved) / 3 + 0.01, "unmerged")):
        problem.rates, problem.modes = replace(rates, load=put), {}
        problem.choose_modes(3)
        assert set(problem.modes.values()) == {chosen}


def test_passes_that_tasks_share_are_counted_once(tokenizer):
    model = LanguageModel(build_model(), tokenizer, batch_tokens=2048)
    tasks = [LIKELIHOOD, replace(LIKELIHOOD, name="other")]
    counted = count_passes(tasks, model)
    made = made_passes(
        model,
        lambda: score_tasks(tasks, model, 1, {task.name: torch.zeros(1, 3) for task in tasks}),
    )
    assert sorted(counted.prompts) == sorted(made) and sum(made) < 2 * sum(
        count_passes([LIKELIHOOD], model).prompts
    )


def test_a_copy_over_max_memory_is_not_considered(make_problem, caplog):
    problem = make_problem(max_memory=1000)
    with caplog.at_level(logging.INFO, "evox_evogm.problems.lora_merge"):
        problem.choose_modes(4)
    assert set(problem.modes.values()) == {"unmerged"} and problem.rates is None
    assert "over half of max_memory" in caplog.text


def test_a_run_can_be_repeated_with_the_paths_of_an_earlier_one(make_problem):
    first = make_problem()
    pop = torch.rand(3, 2)
    scores = first.evaluate(pop)
    assert torch.equal(make_problem(mode=first.modes).evaluate(pop), scores)


def test_the_default_dtype_is_one_that_the_processor_computes_in():
    known = torch.cpu.get_capabilities()
    fast = known.get("avx512_bf16") or known.get("amx_bf16")
    assert default_dtype(torch.device("cpu")) == (torch.bfloat16 if fast else torch.float32)
