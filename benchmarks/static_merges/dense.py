"""Static merges that work on weights or with gradients, on the modules that experts change.

- Fisher merging: M. Matena and C. Raffel, "Merging Models with Fisher-Weighted Averaging", NeurIPS
  2022, arXiv 2111.09832.
- RegMean: X. Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", ICLR
  2023, arXiv 2212.09849.
- AdaMerging: E. Yang et al., "AdaMerging: Adaptive Model Merging for Multi-Task Learning", ICLR
  2024, arXiv 2310.02575.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from benchmarks.suites.answer_loss import answer_loss
from evox_evogm.problems import LoRAMergeProblem, Task
from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.adapters.stacked_modules import StackedModule
from evox_evogm.problems.inference.language_model import LanguageModel, Request
from evox_evogm.problems.tasks.metrics import score_task

Weights = dict[str, torch.Tensor]  # by module name, (D_out, D_in)


def fisher_average(
    weights: Sequence[torch.Tensor], importance: Sequence[torch.Tensor]
) -> torch.Tensor:
    """sum_k F_k theta_k / sum_k F_k by element, and the plain average where no F is above 0.

    :param weights: n tensors of one shape.
    :param importance: the diagonal of each model's Fisher information, of that shape.
    :return: a tensor of that shape.
    """
    total = torch.stack(list(importance)).sum(0)
    weighted = sum(f * w for f, w in zip(importance, weights, strict=True))
    average = torch.stack(list(weights)).mean(0)
    return torch.where(total > 0, weighted / total.clamp_min(1e-30), average)


def regression_mean(
    weights: Sequence[torch.Tensor], grams: Sequence[torch.Tensor], keep: float
) -> torch.Tensor:
    """The W that minimises sum_k ||X_k W^T - X_k W_k^T||^2.

    With G_k = X_k^T X_k it is W^T = (sum_k G_k)^-1 sum_k G_k W_k^T.

    :param weights: n `(D_out, D_in)` tensors.
    :param grams: n `(D_in, D_in)` tensors, inner products of the layer's inputs.
    :param keep: what elements off the diagonals of the grams are multiplied by.
    :return: a `(D_out, D_in)` tensor.
    """
    shrunk = [keep * gram + (1 - keep) * torch.diag(gram.diagonal()) for gram in grams]
    target = sum(gram @ weight.mT for gram, weight in zip(shrunk, weights, strict=True))
    total = sum(shrunk)
    typical = total.diagonal().mean().clamp_min(1e-12)
    ridge = 1e-6 * typical * torch.eye(len(total), dtype=total.dtype)
    return torch.linalg.solve(total + ridge, target).mT


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Mean Shannon entropy in nats of `(N, V)` predictions."""
    log_probabilities = logits.float().log_softmax(1)
    return -(log_probabilities.exp() * log_probabilities).sum(1).mean()


def merged_weights(problem: LoRAMergeProblem, coefficients: torch.Tensor) -> Weights:
    """The weights of every module that an expert changes, merged."""
    model = problem.language_model.model
    weights = {}
    for name, module in problem.stacked.items():
        delta = (module.b * module.channel_weights(coefficients)) @ module.a
        weights[name] = model.get_submodule(name).weight.detach() + delta
    return weights


@contextmanager
def weights_in_place(model: torch.nn.Module, weights: Weights) -> Iterator[None]:
    """Inside the block the model has these weights; afterwards its own."""
    before = {name: model.get_submodule(name).weight.data for name in weights}
    try:
        for name, weight in weights.items():
            model.get_submodule(name).weight.data = weight.to(before[name].dtype)
        yield
    finally:
        for name, weight in before.items():
            model.get_submodule(name).weight.data = weight


@contextmanager
def gradients_of(model: torch.nn.Module, layers: dict[str, torch.nn.Parameter]) -> Iterator[None]:
    """Inside the block only these layers have gradients."""
    before = {weight: weight.requires_grad for weight in model.parameters()}
    wanted = {id(layer) for layer in layers.values()}
    try:
        for weight in before:
            weight.requires_grad_(id(weight) in wanted)
        yield
    finally:
        for weight, requires_grad in before.items():
            weight.requires_grad_(requires_grad)


def squared_gradients(
    model: torch.nn.Module, names: Sequence[str], requests: Sequence[Request]
) -> Weights:
    """The diagonal of the empirical Fisher information.

    It is the mean over questions of the squared gradient of the right answer's loss.

    :param model: in whose modules the weights are.
    :param names: of the modules.
    :param requests: questions with their answers.
    """
    layers = {name: model.get_submodule(name).weight for name in names}
    total = {}
    for name, weight in layers.items():
        total[name] = torch.zeros_like(weight, dtype=torch.float32)
    with gradients_of(model, layers):
        for request in requests:
            loss = len(request[1]) * answer_loss(model, [request])  # a sum over answer tokens
            gradients = torch.autograd.grad(loss, list(layers.values()))
            for name, gradient in zip(layers, gradients, strict=True):
                total[name] += gradient.float().square() / len(requests)
    return total


@torch.no_grad()
def input_grams(
    model: torch.nn.Module, names: Sequence[str], requests: Sequence[Request]
) -> Weights:
    """X^T X of the inputs of every module, over the tokens of questions and answers."""
    grams: Weights = {}
    handles = []

    def add_to(name: str):
        def hook(layer, inputs):
            rows = inputs[0].flatten(0, -2).float()
            grams[name] = grams.get(name, 0) + rows.mT @ rows

        return hook

    try:
        for name in names:
            module = model.get_submodule(name)
            handles.append(module.register_forward_pre_hook(add_to(name)))
        for prompt, answer in requests:
            model(input_ids=torch.tensor([prompt + answer], device=model.device))
    finally:
        for handle in handles:
            handle.remove()
    return grams


def last_logits(model: torch.nn.Module, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits `(N, V)` of the first token after every prompt, with gradients."""
    rows = [torch.tensor(prompt, device=model.device) for prompt in prompts]
    # Padded at the end, which changes nothing before it: attention is causal.
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (N, C)
    last = torch.tensor([len(row) - 1 for row in rows], device=model.device)
    hidden = model.base_model(input_ids=tokens).last_hidden_state
    return model.get_output_embeddings()(hidden[torch.arange(len(rows)), last])


def layer_of(module: str) -> int:
    """The number of the decoder layer that a module belongs to, 0 if its name has none."""
    found = re.search(r"\.(\d+)\.", module)
    return int(found[1]) if found else 0


@contextmanager
def coefficients_by_layer(problem: LoRAMergeProblem, coefficients: torch.Tensor) -> Iterator[None]:
    """Inside the block the model is merged.

    :param problem: whose model and experts are merged.
    :param coefficients: a `(layers, n)` tensor, a row per decoder layer, or one row for all.
    """

    def weight(name: str, module: StackedModule) -> torch.Tensor:
        row = coefficients[layer_of(name) % len(coefficients)]
        return module.channel_weights(row)[None].to(module.a.dtype)  # (1, R)

    every_expert = torch.ones(problem.n_experts)
    with merged(problem.language_model.model, problem.stacked, every_expert) as population:
        for name, module in population.modules.items():
            population.weights[name] = weight(name, module)
        yield


def ada_merging(
    problem: LoRAMergeProblem,
    prompts: Sequence[Sequence[int]],
    start: float,
    *,
    by_layer: bool,
    steps: int,
    batch: int,
    lr: float,
) -> torch.Tensor:
    """Coefficients with small entropy of the first token of answers, by Adam.

    :param problem: whose model and experts are merged.
    :param prompts: tokens of questions; no answers are needed.
    :param start: every coefficient in the beginning.
    :param by_layer: a coefficient per decoder layer and expert ("layer-wise"), instead of one per
        expert ("task-wise").
    :param steps: of Adam.
    :param batch: questions a step.
    :param lr: the learning rate.
    :return: a `(layers or 1, n)` tensor.
    """
    layers = 1 + max(map(layer_of, problem.stacked)) if by_layer else 1
    coefficients = torch.full((layers, problem.n_experts), start, requires_grad=True)
    optimizer = torch.optim.Adam([coefficients], lr=lr)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(prompts), (batch,), generator=generator)
        chosen = [prompts[row] for row in rows]
        with coefficients_by_layer(problem, coefficients):
            loss = entropy(last_logits(problem.language_model.model, chosen))
        (coefficients.grad,) = torch.autograd.grad(loss, [coefficients])
        optimizer.step()
    return coefficients.detach()


def mean_scores(model: LanguageModel, tasks: Sequence[Task]) -> dict[str, float]:
    """The mean score of each task."""
    return {task.name: float(score_task(task, model).mean()) for task in tasks}
