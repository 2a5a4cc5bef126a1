"""Scores of a population in shared batches, beside the scores of each candidate's own merge."""

import pytest
import torch
from builders import TARGETS, build_model, stack_folders, two_adapters

from evox_evogm.problems import Example, Task
from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.tasks.metrics import score_task, score_tasks
from evox_evogm.problems.tasks.task import METRIC_NAMES

COEFFICIENTS = torch.tensor([[0.7, -1.2], [0.0, 0.0], [-0.4, 0.9], [1.5, 0.3]])
PROMPTS = ["a", "What is it?", "Question: 12\nAnswer:", "zz top", "What"]
CHOICES = (("A", "yes"), ("B", "not at all"))
NEAR = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(params=list(TARGETS))
def base_and_modules(request, make_adapter):
    model = build_model(request.param)
    return model, stack_folders(two_adapters(request.param, make_adapter))


class RecordingModel(LanguageModel):
    """Notes how many requests are scored together."""

    def likelihoods(self, requests, candidates=None, derivative_of=None):
        self.__dict__.setdefault("sizes", []).append(len(requests))
        return super().likelihoods(requests, candidates, derivative_of)


def choice_task(name, prompts, metric, **settings):
    """A task of two choices, whose right keys are A and B in turn."""
    examples = []
    for index, prompt in enumerate(prompts):
        examples.append(Example(str(index), prompt, "AB"[index % 2], CHOICES))
    return Task(name, "1", metric, tuple(examples), max_new_tokens=3, **settings)


def zero_margins(tasks, candidates):
    return {task.name: torch.zeros(candidates, len(task.examples)) for task in tasks}


def test_answers_of_mixed_candidates_are_what_each_merged_model_generates(
    base_and_modules, tokenizer
):
    model, modules = base_and_modules
    scorer = LanguageModel(model, tokenizer, batch_tokens=90)
    prompts = [scorer.prompt_tokens(prompt) for prompt in PROMPTS]
    candidates = [0, 3, 2, 1, 2]
    with merged(model, modules, COEFFICIENTS) as population, scorer.candidates(population.select):
        texts = scorer.generate(prompts, 7, candidates)
    for prompt, candidate, text in zip(prompts, candidates, texts, strict=True):
        with merged(model, modules, COEFFICIENTS[candidate]):
            reply = model.generate(
                torch.tensor([prompt]),
                max_new_tokens=7,
                do_sample=False,
                eos_token_id=scorer.end_token,
            )
        assert text == tokenizer.decode(reply[0, len(prompt) :], skip_special_tokens=True)
    assert len(set(texts)) > 1


@pytest.mark.parametrize("metric", METRIC_NAMES)
@pytest.mark.parametrize("continuation", ["key", "text"])
def test_a_population_scores_as_its_members_do(base_and_modules, tokenizer, metric, continuation):
    model, modules = base_and_modules
    scorer = LanguageModel(model, tokenizer, batch_tokens=120)
    task = choice_task("any", PROMPTS, metric, continuation=continuation)
    margins = zero_margins([task], 4)
    with merged(model, modules, COEFFICIENTS) as population, scorer.candidates(population.select):
        together = score_tasks([task], scorer, 4, margins)["any"]
    assert together.shape == (4, 5)
    for row, coefficients in enumerate(COEFFICIENTS):
        alone_margins = torch.zeros(5)
        with merged(model, modules, coefficients):
            alone = score_task(task, scorer, alone_margins)
        torch.testing.assert_close(together[row], alone, **NEAR)
        torch.testing.assert_close(margins["any"][row], alone_margins, **NEAR)


def test_tasks_that_share_batches_score_as_each_alone(base_and_modules, tokenizer):
    model, modules = base_and_modules
    scorer = RecordingModel(model, tokenizer, batch_tokens=120)
    metrics = ["exact_match", "choice_likelihood", "exact_match", "gold_log_probability"]
    tasks = []
    for number, metric in enumerate(metrics):
        prompts = [f"{prompt} {number}" for prompt in PROMPTS[number:]]
        tasks.append(choice_task(f"task {number}", prompts, metric))
    tasks.append(choice_task("other match", [f"{PROMPTS[4]} 4"], "exact_match", match="contains"))
    margins = zero_margins(tasks, 4)
    with merged(model, modules, COEFFICIENTS) as population, scorer.candidates(population.select):
        together = score_tasks(tasks, scorer, 4, margins)
        both_exact, two_choices, gold = 4 * (5 + 3), 4 * 4 * 2, 4 * 2
        assert scorer.sizes == [both_exact, two_choices, gold]
        for task in tasks:
            alone_margins = zero_margins([task], 4)
            alone = score_tasks([task], scorer, 4, alone_margins)
            torch.testing.assert_close(together[task.name], alone[task.name], **NEAR)
            torch.testing.assert_close(margins[task.name], alone_margins[task.name], **NEAR)


def test_tasks_whose_prompts_begin_alike_are_scored_alone(tokenizer):
    scorer = RecordingModel(build_model(), tokenizer)
    beginnings = {"few-shot": "Q: 1 A: 2, ", "other": "Add one. ", "plain": "", "bare": ""}
    tasks = []
    for name, beginning in beginnings.items():
        examples = []
        for index in range(4):
            examples.append(Example(str(index), f"{beginning}{index}{name}", "2"))
        tasks.append(Task(name, "1", "gold_log_probability", tuple(examples)))
    score_tasks(tasks, scorer, 1, zero_margins(tasks, 1))
    assert scorer.sizes == [4, 4, 8]
