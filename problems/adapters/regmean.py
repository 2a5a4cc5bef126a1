"""RegMean as a set of experts: their plain sum is the RegMean merge, and a search can go on from there.

RegMean (X. Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", ICLR 2023, arXiv 2212.09849) asks,
module by module, for the weights whose outputs are nearest to those of every model k on its own inputs X_k:
W^T = (sum_k G_k)^-1 sum_k G_k W_k^T, with G_k = X_k^T X_k. For LoRA experts W_k = W_0 + s_k B_k A_k of one base,
W = W_0 + sum_k s_k B_k A_k G_k (sum_j G_j)^-1: expert k keeps B_k and its rank, and A_k becomes A_k G_k (sum_j G_j)^-1. It
then answers for the inputs that are its own, and leaves those of the others alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from evox_evogm.problems.adapters.merging import merged, stack_experts
from evox_evogm.problems.adapters.read_adapter import Expert, Factors
from evox_evogm.problems.inference.language_model import LanguageModel, Request
from evox_evogm.problems.tasks.metrics import requests_of
from evox_evogm.problems.tasks.task import Task

KEEP = 0.9  # what elements off the diagonals of the G_k are multiplied by, as published
RIDGE = 1e-6  # of the mean of a gram's diagonal: fewer tokens than inputs leave directions of which nothing is known
UNSEEN = 1e-6  # tokens that every expert is taken to have seen of each kind, so that unknown ones are averaged


class Grams:
    """What regression needs of the inputs of one module: sums over the tokens of all experts' examples.

    :param factors: of the module, by the index of the experts that have it.
    :param width: D, the number of inputs, or of tokens in the vocabulary.
    :param count: n, the number of experts.
    """

    def __init__(
        self, factors: Mapping[int, Factors], width: int, count: int, device: torch.device
    ):
        self.embedding = next(iter(factors.values())).embedding
        self.a = {index: one.a.to(device) for index, one in factors.items()}  # per expert (r, D)
        self.sizes = torch.zeros(count, width, device=device)  # (n, D), the diagonals of the G_k
        if not self.embedding:  # of one-hot inputs nothing is off the diagonal
            self.total = torch.zeros(width, width, device=device)  # (D, D), sum_k G_k
            self.seen = {
                index: torch.zeros_like(a) for index, a in self.a.items()
            }  # per expert (r, D), A_k G_k

    def add(self, index: int, inputs: torch.Tensor) -> None:
        """Note inputs `(..., D)`, or tokens, of expert `index`."""
        if self.embedding:
            self.sizes[index] += inputs.flatten().bincount(minlength=self.sizes.shape[1])
            return
        rows = inputs.flatten(0, -2).to(self.total)  # (N, D)
        self.total += rows.mT @ rows
        self.sizes[index] += rows.square().sum(0)
        if index in self.a:
            self.seen[index] += (self.a[index] @ rows.mT) @ rows

    def regressed(self) -> dict[int, torch.Tensor]:
        """A_k G_k (sum_j G_j)^-1 `(r, D)` by expert, in float32 on the CPU, with what is off the diagonals times `KEEP`."""
        a = {index: one.cpu().double() for index, one in self.a.items()}
        sizes = self.sizes.cpu().double()
        if self.embedding:
            shares = (sizes + UNSEEN) / (sizes + UNSEEN).sum(0)
            return {index: (one * shares[index]).float() for index, one in a.items()}
        total = KEEP * self.total.cpu().double()
        total.diagonal().add_((1 - KEEP) * sizes.sum(0))
        total.diagonal().add_(RIDGE * sizes.sum(0).mean().clamp_min(1e-12))
        factor = torch.linalg.cholesky(total)
        shrunk = {
            k: KEEP * self.seen[k].cpu().double() + (1 - KEEP) * one * sizes[k]
            for k, one in a.items()
        }
        return {
            k: torch.cholesky_solve(one.mT, factor).mT.float().contiguous()
            for k, one in shrunk.items()
        }


def regress_experts(
    model: LanguageModel, experts: Sequence[Expert], tasks: Mapping[str, Sequence[Task]]
) -> list[Expert]:
    """Experts whose sum is the RegMean merge of the given ones.

    The inputs of an expert are those that its modules see while the model, merged with this expert alone, reads examples and
    their right answers. Takes a forward pass per example, or several if the inner products of all modules, D x D in float32,
    would take more than `model.max_memory`.

    :param model: the base.
    :param experts: n adapters that fit it (`experts.check_fit`).
    :param tasks: by the name of the expert, the tasks that it was made for.
    :return: the n experts with other A, of the same ranks and scales, in float32 on the CPU.
    :raises ValueError: if an expert has no task or one of them twice, if a name is none of an expert, or if the model with an
        expert gives numbers that are not finite.
    """
    if not isinstance(tasks, Mapping):
        raise ValueError(
            f"regmean: expected a mapping of experts to their tasks, found {type(tasks).__name__}"
        )
    names = [expert.name for expert in experts]
    for name in tasks:
        if name not in names:
            raise ValueError(
                f"regmean: expected names of experts ({', '.join(names)}), found {name!r}"
            )
    for name in names:
        if not tasks.get(name):
            raise ValueError(
                f"regmean: expected a task that expert {name!r} was made for, found none"
            )
        if not isinstance(tasks[name], Sequence) or not all(
            isinstance(task, Task) for task in tasks[name]
        ):
            raise ValueError(
                f"regmean: expected for expert {name!r} a list of tasks, found {type(tasks[name]).__name__}"
            )
        own = [task.name for task in tasks[name]]
        if len(set(own)) < len(own):
            raise ValueError(
                f"regmean: expected for expert {name!r} every task once, found {', '.join(own)}"
            )
    requests = [
        [request for task in tasks[name] for request in requests_of(task, model)] for name in names
    ]
    stacked = stack_experts(experts, model.model.dtype, model.device, model.model)
    modules: list[dict[str, Factors]] = [{} for _ in experts]
    for chunk in _chunks(experts, list(stacked), model.max_memory):
        grams = {}
        for name in chunk:
            factors = {
                k: expert.modules[name]
                for k, expert in enumerate(experts)
                if name in expert.modules
            }
            width = next(iter(factors.values())).a.shape[1]
            grams[name] = Grams(factors, width, len(experts), stacked[name].a.device)
        for index, row in enumerate(torch.eye(len(experts))):
            with merged(model.model, stacked, row):
                _note_inputs(model.model, requests[index], grams, index)
        for name in chunk:
            wild = [
                names[k] for k, sizes in enumerate(grams[name].sizes) if not sizes.isfinite().all()
            ]
            if wild:
                raise ValueError(
                    f"regmean: expected finite inputs of {name}, found others with expert {wild[0]!r}"
                )
            for index, a in grams.pop(name).regressed().items():
                modules[index][name] = replace(experts[index].modules[name], a=a)
    return [replace(expert, modules=mine) for expert, mine in zip(experts, modules, strict=True)]


@torch.no_grad()
def _note_inputs(
    model: torch.nn.Module, requests: Sequence[Request], grams: Mapping[str, Grams], index: int
) -> None:
    """Let the model read, and every module's grams note what it sees."""
    handles = []
    try:
        for name, module in grams.items():

            def note(layer, inputs, module=module):
                module.add(index, inputs[0])

            handles.append(model.get_submodule(name).register_forward_pre_hook(note))
        for prompt, answer in requests:
            model(input_ids=torch.tensor([prompt + answer], device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()


def _chunks(
    experts: Sequence[Expert], names: Sequence[str], max_memory: int
) -> Iterator[list[str]]:
    """Names of modules whose grams take at most `max_memory` bytes together, or one module that takes more."""
    factors = {name: module for expert in experts for name, module in expert.modules.items()}
    chunk, taken = [], 0
    for name in names:
        width = factors[name].a.shape[1]
        size = 0 if factors[name].embedding else 4 * width * width
        if chunk and taken + size > max_memory:
            yield chunk
            chunk, taken = [], 0
        chunk.append(name)
        taken += size
    if chunk:
        yield chunk
