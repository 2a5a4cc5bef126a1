"""Derivatives of margins by coefficients are those of central differences in float64."""

from contextlib import contextmanager

import pytest
import torch
from architectures import ARCHITECTURES, build, build_character_tokenizer, write_adapters
from builders import TARGETS, build_model, two_adapters

from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.adapters.layers import weight_of
from evox_evogm.problems.adapters.merging import merge_weight
from evox_evogm.problems.tasks.requests import choice_requests, gold_request, greedy_request

STEP = 1e-5
LETTERS = (("A", "yes"), ("B", "no"), ("C", "perhaps"))
PICK = tuple(Example(str(i), f"pick {i} of them", "B", LETTERS) for i in range(2))
ADD = (Example("0", "1+1=", "2"), Example("1", "22+5=", "27 apples"))
TASKS = {
    "choices of one token": Task("a", "1", "choice_likelihood", PICK),
    "long choices": Task("b", "1", "choice_likelihood", PICK, continuation="text"),
    "gold": Task("c", "1", "gold_log_probability", ADD),
    "text": Task("d", "1", "exact_match", ADD, max_new_tokens=12),
    "generated": Task("e", "1", "exact_match", ADD, max_new_tokens=3, match="contains"),
    "parsed": Task("f", "1", "multiple_choice_generation", PICK, max_new_tokens=3),
}
POP = torch.tensor([[0.7, -0.4], [0.0, 0.3]], dtype=torch.float64)


@pytest.fixture
def make_problem(tokenizer, make_adapter):
    """A function that makes a problem in float64."""

    def make(architecture, tasks, groups="expert", **settings):
        model = build_model(architecture).double()
        folders = two_adapters(architecture, make_adapter)
        return LoRAMergeProblem(
            model, folders, tasks, tokenizer=tokenizer, groups=groups, **settings
        )

    return make


@torch.no_grad()
def plain_logits(problem, coefficients, tokens):
    """The logits `(C, V)` of one row by a model whose weights are those of the merge."""
    model = problem.language_model.model
    output = model.get_output_embeddings()
    tied = output.weight
    output.weight = torch.nn.Parameter(tied.detach().clone())  # an expert of the embedding alone
    originals = {}
    for name in problem.stacked:
        weight = weight_of(model, name)
        originals[weight] = weight.detach().clone()
    try:
        for name, module in problem.stacked.items():
            weight = weight_of(model, name)
            channels = coefficients[module.coefficient] * module.scale.double()
            weight.copy_(merge_weight(model, name, module, channels))
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    finally:
        output.weight = tied
        for weight, original in originals.items():
            weight.copy_(original)


def token_log_probabilities(problem, coefficients, request):
    """`(T,)`, of the tokens of a continuation, and their log-odds."""
    prompt, answer = request
    logits = plain_logits(problem, coefficients, prompt + answer)[len(prompt) - 1 : -1]
    log_p = logits.log_softmax(-1)[range(len(answer)), list(answer)]
    return log_p, log_p - (1 - log_p.exp()).log()


def plain_value(problem, coefficients, task, example):
    """What is differentiated, by its definition."""
    model = problem.language_model
    if task.metric == "choice_likelihood":
        found = []
        for request in choice_requests(task, model, example):
            found.append(token_log_probabilities(problem, coefficients, request)[0].sum())
        keys = [key for key, _ in example.choices]
        gold = found.pop(keys.index(example.target))
        return gold - torch.stack(found).exp().sum().log()
    if task.metric == "exact_match" and task.match == "equal":
        request = greedy_request(task, model, example)
        odds = token_log_probabilities(problem, coefficients, request)[1]
        return -(-odds).exp().sum().log()
    prompt, answer = gold_request(task, model, example)
    request = prompt, answer[:-1]  # without the end of the text
    return token_log_probabilities(problem, coefficients, request)[0].mean()


@contextmanager
def norms_in_float64():
    """Models compute their norms in float32, which is too coarse for differences."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


@norms_in_float64()
def central_differences(problem, coefficients, task, example):
    found = []
    for step in STEP * torch.eye(len(coefficients), dtype=torch.float64):
        above = plain_value(problem, coefficients + step, task, example)
        below = plain_value(problem, coefficients - step, task, example)
        found.append((above - below) / (2 * STEP))
    return torch.stack(found)


def check_derivatives(problem, pop):
    found = problem.scorer.differentiate(pop, problem.tasks)
    for task in problem.tasks:
        for row, coefficients in enumerate(pop):
            for place, example in enumerate(task.examples):
                expected = central_differences(problem, coefficients, task, example)
                derivatives = found.derivatives[task.name][row, place].double()
                torch.testing.assert_close(derivatives, expected, rtol=1e-5, atol=1e-7)
    return found


@pytest.mark.parametrize("kind", TASKS)
def test_derivatives_are_those_of_central_differences(make_problem, kind):
    check_derivatives(make_problem("llama", [TASKS[kind]]), POP)


@pytest.mark.parametrize("architecture", TARGETS)
def test_they_are_on_each_kind_of_layer(make_problem, architecture):
    check_derivatives(make_problem(architecture, list(TASKS.values())[1:4]), POP[:1])


@pytest.mark.parametrize("groups", ["layer", "module"])
def test_they_are_by_expert_and_group(make_problem, groups):
    problem = make_problem("llama", [TASKS["text"]], groups)
    pop = torch.linspace(-0.5, 0.8, problem.n_coefficients, dtype=torch.float64)[None]
    check_derivatives(problem, pop)


def test_layers_that_run_twice_give_the_same(make_problem):
    problem = make_problem("llama", list(TASKS.values()))
    expected = problem.scorer.differentiate(POP, problem.tasks)
    problem.language_model.max_memory = 1
    found = problem.scorer.differentiate(POP, problem.tasks)
    for name, derivatives in expected.derivatives.items():
        torch.testing.assert_close(found.derivatives[name], derivatives)


def test_scores_and_margins_are_those_without_derivatives(make_problem):
    problem = make_problem("llama", list(TASKS.values()), mode="unmerged")
    found = problem.scorer.differentiate(POP, problem.tasks)
    expected = problem.scorer.score(POP, problem.tasks)
    for name, scores in expected.scores.items():
        assert torch.equal(found.scores[name], scores)
        torch.testing.assert_close(found.margins[name], expected.margins[name])


@pytest.mark.parametrize("name", ["mixtral, parameters", "mamba", "qwen3_5_text"])
def test_they_are_on_mixtures_and_recurrent_layers(name, tmp_path):
    architecture = ARCHITECTURES[name]
    model = build(architecture)
    model.set_experts_implementation("eager")  # the default multiplies no float64
    folders = write_adapters(architecture, model, tmp_path)
    problem = LoRAMergeProblem(
        model.double(), folders, [TASKS["text"]], tokenizer=build_character_tokenizer()
    )
    check_derivatives(problem, 0.3 * POP[:1])
