"""Rows of one batch that belong to different candidates, beside each candidate's own merge."""

import pytest
import torch
from builders import build_model

from evox_evogm.problems import Example, Task
from evox_evogm.problems.adapters.merging import (
    Population,
    WeightMerger,
    merged,
    merged_in_place,
    stack_experts,
)
from evox_evogm.problems.adapters.read_adapter import read_expert
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.tasks.metrics import score_task, score_tasks

TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj", "embed_tokens"],
    "qwen2": ["k_proj", "o_proj", "gate_proj", "lm_head"],
    "gemma": ["q_proj", "up_proj", "embed_tokens"],
    "gpt2": ["c_attn", "c_proj"],
}
COEFFICIENTS = torch.tensor([[0.7, -1.2], [0.0, 0.0], [-0.4, 0.9], [1.5, 0.3]])
PROMPTS = ["a", "What is it?", "Question: 12\nAnswer:", "zz top", "What"]


@pytest.fixture(params=list(TARGETS))
def base_and_modules(request, make_adapter):
    model = build_model(request.param)
    folders = [
        make_adapter(
            f"{request.param}{i}",
            build_model(request.param),
            seed=i,
            r=2 + i,
            target_modules=TARGETS[request.param],
        )
        for i in range(2)
    ]
    experts = [read_expert(folder) for folder in folders]
    return model, stack_experts(experts, torch.float32, torch.device("cpu"))


@torch.no_grad()
def test_each_row_of_a_batch_sees_its_own_merge(base_and_modules):
    model, modules = base_and_modules
    tokens = torch.randint(1, 257, (5, 9))
    owners = [2, 0, 3, 1, 0]
    with merged(model, modules, COEFFICIENTS) as population:
        population.select(owners)
        together = model(tokens).logits
    for row, owner in enumerate(owners):
        with merged(model, modules, COEFFICIENTS[owner]):
            torch.testing.assert_close(
                together[row], model(tokens[row : row + 1]).logits[0], rtol=1e-4, atol=1e-4
            )
    assert not any(module._forward_hooks for module in model.modules())


def test_answers_of_mixed_candidates_are_what_each_merged_model_generates(
    base_and_modules, tokenizer
):
    model, modules = base_and_modules
    scorer = LanguageModel(model, tokenizer, batch_tokens=90)
    prompts = [scorer.prompt_tokens(p) for p in PROMPTS]
    owners = [0, 3, 2, 1, 2]
    with merged(model, modules, COEFFICIENTS) as population, scorer.candidates(population.select):
        texts = scorer.generate(prompts, 7, owners)
    for prompt, owner, text in zip(prompts, owners, texts, strict=True):
        with merged(model, modules, COEFFICIENTS[owner]):
            reply = model.generate(
                torch.tensor([prompt]),
                max_new_tokens=7,
                do_sample=False,
                eos_token_id=scorer.end_token,
            )
        assert text == tokenizer.decode(reply[0, len(prompt) :], skip_special_tokens=True)
    assert len(set(texts)) > 1


@pytest.mark.parametrize(
    "metric",
    ["choice_likelihood", "gold_log_probability", "exact_match", "multiple_choice_generation"],
)
@pytest.mark.parametrize("continuation", ["key", "text"])
def test_a_population_scores_as_its_members_do(base_and_modules, tokenizer, rule, continuation):
    model, modules = base_and_modules
    scorer = LanguageModel(model, tokenizer, batch_tokens=120)
    choices = (("A", "yes"), ("B", "not at all"))
    examples = tuple(
        Example(str(i), prompt, "AB"[i % 2], choices) for i, prompt in enumerate(PROMPTS)
    )
    task = Task("any", "1", rule, examples, max_new_tokens=3, continuation=continuation)
    with merged(model, modules, COEFFICIENTS) as population, scorer.candidates(population.select):
        together = score_tasks([task], scorer, len(COEFFICIENTS), {task.name: torch.zeros(4, 5)})[
            task.name
        ]
    assert together.shape == (4, 5)
    for row, coefficients in zip(together, COEFFICIENTS, strict=True):
        with merged(model, modules, coefficients):
            torch.testing.assert_close(row, score_task(task, scorer), rtol=1e-4, atol=1e-4)


def test_tasks_that_share_batches_score_as_each_alone(base_and_modules, tokenizer):
    model, modules = base_and_modules
    scorer, tasks = LanguageModel(model, tokenizer, batch_tokens=120), []
    choices = (("A", "yes"), ("B", "not at all"))
    for number, rule in enumerate(
        ["exact_match", "choice_likelihood", "exact_match", "gold_log_probability", "exact_match"]
    ):
        examples = tuple(
            Example(str(i), f"{p} {number}", "AB"[i % 2], choices)
            for i, p in enumerate(PROMPTS[number:])
        )
        match = "equal" if number < 4 else "contains"
        tasks.append(Task(f"task {number}", "1", rule, examples, max_new_tokens=3, match=match))
    passes, forward = [], scorer.likelihoods
    scorer.likelihoods = lambda requests, candidates: (
        passes.append(len(requests)) or forward(requests, candidates)
    )
    margins = {task.name: torch.zeros(4, len(task.examples)) for task in tasks}
    with merged(model, modules, COEFFICIENTS) as population, scorer.candidates(population.select):
        together = score_tasks(tasks, scorer, 4, margins)
        assert passes == [
            4 * (5 + 3),
            4 * 4 * 2,
            4 * 2,
        ]  # the two that are asked alike, two choices each, log-probabilities
        for task in tasks:
            alone = {task.name: torch.zeros(4, len(task.examples))}
            scores = score_tasks([task], scorer, 4, alone)
            torch.testing.assert_close(together[task.name], scores[task.name], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(margins[task.name], alone[task.name], rtol=1e-4, atol=1e-4)


def test_tasks_whose_prompts_begin_alike_are_scored_alone(tokenizer):
    scorer, tasks = LanguageModel(build_model(), tokenizer), []
    for name, start in {
        "few-shot": "Q: 1 A: 2, ",
        "other": "Add one. ",
        "plain": "",
        "bare": "",
    }.items():
        examples = tuple(
            Example(str(i), f"{start}{i}{name}" if start else f"{i}{name}", "2") for i in range(4)
        )
        tasks.append(Task(name, "1", "gold_log_probability", examples))
    passes, forward = [], scorer.likelihoods
    scorer.likelihoods = lambda requests, candidates: (
        passes.append(len(requests)) or forward(requests, candidates)
    )
    score_tasks(tasks, scorer, 1, {task.name: torch.zeros(1, 4) for task in tasks})
    assert passes == [4, 4, 8]


def test_a_module_that_sees_the_batch_without_its_row_dimension_gets_the_same_weights(
    base_and_modules,
):
    population = Population(base_and_modules[1], COEFFICIENTS)
    population.select([1, 3])
    name = next(iter(population.modules))
    rows, flat = (
        population.weights_of_rows(name, *shape) for shape in ((2, 3), (8, 2))
    )  # (2, 4, D) and (8, D)
    assert torch.equal(rows.expand(2, 4, -1).flatten(0, 1), flat)


def test_experts_that_no_candidate_uses_cost_nothing(base_and_modules):
    model, modules = base_and_modules
    population = Population(modules, torch.tensor([[0.0, 0.5], [0.0, -1.0]]))
    assert all(
        (module.expert == 1).all() and len(module.a) < len(modules[name].a)
        for name, module in population.modules.items()
    )
    with merged(model, modules, torch.zeros(2)):
        assert not any(module._forward_hooks for module in model.modules())


@torch.no_grad()
def test_merges_in_the_weights_equal_the_unmerged_ones_and_leave_the_base_as_it_was(
    base_and_modules,
):
    model, modules = base_and_modules
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tokens = torch.randint(1, 257, (2, 9))
    seen = []
    with merged_in_place(WeightMerger(model, modules), COEFFICIENTS) as candidates:
        for _ in candidates:
            seen.append(model(tokens).logits)
    assert len(seen) == len(COEFFICIENTS)
    for logits, coefficients in zip(seen, COEFFICIENTS, strict=True):
        with merged(model, modules, coefficients):
            torch.testing.assert_close(logits, model(tokens).logits, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_error_between_merges_leaves_the_base_as_it_was_bit_for_bit(make_adapter, dtype):
    model = build_model().to(dtype)
    expert = read_expert(make_adapter("a"))
    modules = stack_experts([expert], dtype, torch.device("cpu"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with (
        pytest.raises(KeyError),
        merged_in_place(WeightMerger(model, modules), torch.tensor([[3.0], [1.0]])) as candidates,
    ):
        next(candidates)
        assert not all(
            torch.equal(value, before[name]) for name, value in model.state_dict().items()
        )
        raise KeyError("stop")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@torch.no_grad()
def test_a_weight_that_two_layers_share_is_not_changed_for_both(make_adapter):
    model = build_model(tie_word_embeddings=True)
    folder = make_adapter(
        "tied", build_model(tie_word_embeddings=True), target_modules=["embed_tokens", "q_proj"]
    )
    modules = stack_experts([read_expert(folder)], torch.float32, torch.device("cpu"))
    tokens = torch.randint(1, 257, (2, 9))
    with merged_in_place(WeightMerger(model, modules), torch.tensor([[0.8]])) as candidates:
        next(candidates)
        found = model(tokens).logits
    with merged(model, modules, torch.tensor([0.8])):
        torch.testing.assert_close(found, model(tokens).logits, rtol=1e-4, atol=1e-4)
