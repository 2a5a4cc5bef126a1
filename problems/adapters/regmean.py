"""RegMean as a set of experts: their plain sum is the RegMean merge, from which a search can go on.

RegMean: X. Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", ICLR
2023, arXiv 2212.09849. Module by module it finds the weights whose outputs are nearest to those of
every model k on the inputs X_k of that model:

    W^T = (sum_k G_k)^-1 sum_k G_k W_k^T, with the Gram matrix G_k = X_k^T X_k.

For LoRA experts W_k = W_0 + s_k B_k A_k of one base this is

    W = W_0 + sum_k s_k B_k A_k G_k (sum_j G_j)^-1.

Expert k keeps B_k and its rank, and A_k becomes A_k G_k (sum_j G_j)^-1. It then acts on inputs like
its own, and less on those of the other experts.

Here it is known which tasks an expert was made for. Where it is not: `regmean_unlabelled.py`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.adapters.passes import passes, run_pass
from evox_evogm.problems.adapters.read_adapter import Expert, Factors
from evox_evogm.problems.adapters.stacked_modules import StackedModule, stack_experts
from evox_evogm.problems.inference.language_model import LanguageModel, Request
from evox_evogm.problems.tasks.requests import requests_of
from evox_evogm.problems.tasks.task import Task

# The paper multiplies the elements off the diagonals of the G_k by this number (its alpha).
OFF_DIAGONAL = 0.9
# Of the mean of a Gram matrix's diagonal. With fewer tokens than inputs the matrix is singular.
RIDGE = 1e-6
REGRESSED = " (regressed)"  # behind the name of an expert that has itself beside it as it is
# Added to the count of each token for each expert, so that experts share unseen tokens equally.
PSEUDO_COUNT = 1e-6


class Grams:
    """What the regression needs of the inputs of one module: sums over the tokens of all experts.

    An embedding has one-hot inputs. Their Gram matrices are diagonal, so that token counts suffice.
    """

    def __init__(
        self, factors: Mapping[int, Factors], width: int, count: int, device: torch.device
    ):
        """Start with no tokens.

        :param factors: of the module, by the index of the experts that have it.
        :param width: D, the number of inputs, or of tokens in the vocabulary.
        :param count: n, the number of experts.
        :param device: where the sums are kept.
        """
        self.embedding = next(iter(factors.values())).embedding
        self.a: dict[int, torch.Tensor] = {}  # per expert A_k (r, D)
        self.a_gram: dict[int, torch.Tensor] = {}  # per expert A_k G_k (r, D)
        self.diagonals = torch.zeros(count, width, device=device)  # (n, D), those of the G_k
        for index, module in factors.items():
            self.a[index] = module.a.to(device)
        if not self.embedding:
            self.sum = torch.zeros(width, width, device=device)  # (D, D), sum_k G_k
            for index, a in self.a.items():
                self.a_gram[index] = torch.zeros_like(a)

    def add(self, index: int, inputs: torch.Tensor, weights: torch.Tensor) -> None:
        """Add inputs `(..., D)`, or tokens of any shape, of expert `index`.

        :param weights: how often each of the N inputs counts, an `(N,)` tensor, or `(1,)` for all.
        """
        if self.embedding:
            counted = weights.to(inputs.device).expand(inputs.numel())
            self.diagonals[index] += inputs.flatten().bincount(counted, self.diagonals.shape[1])
            return
        rows = inputs.flatten(0, -2).to(self.sum)  # (N, D)
        rows = rows * weights.to(rows).sqrt().view(-1, 1)
        self.sum.addmm_(rows.mT, rows)
        self.diagonals[index] += rows.square().sum(0)
        if index in self.a:
            self.a_gram[index] += (self.a[index] @ rows.mT) @ rows

    def regressed(self) -> dict[int, torch.Tensor]:
        """A_k G_k (sum_j G_j)^-1 `(r, D)` by expert, in float32 on the CPU.

        What is off the diagonals of the G_k is multiplied by `OFF_DIAGONAL`.
        """
        return self._share_tokens() if self.embedding else self._solve()

    def _share_tokens(self) -> dict[int, torch.Tensor]:
        counts = self.diagonals.cpu().double() + PSEUDO_COUNT
        shares = counts / counts.sum(0)  # (n, D)
        regressed = {}
        for index, a in self.a.items():
            regressed[index] = (a.cpu().double() * shares[index]).float()
        return regressed

    def _solve(self) -> dict[int, torch.Tensor]:
        diagonals = self.diagonals.cpu().double()
        diagonal = diagonals.sum(0)  # (D,)
        total = OFF_DIAGONAL * self.sum.cpu().double()
        total.diagonal().add_((1 - OFF_DIAGONAL) * diagonal)
        total.diagonal().add_(RIDGE * diagonal.mean().clamp_min(1e-12))
        factor = torch.linalg.cholesky(total)
        regressed = {}
        for index, a in self.a.items():
            a_gram = OFF_DIAGONAL * self.a_gram[index].cpu().double()
            a_gram += (1 - OFF_DIAGONAL) * a.cpu().double() * diagonals[index]
            solution = torch.cholesky_solve(a_gram.mT, factor).mT  # (r, D)
            regressed[index] = solution.float().contiguous()
        return regressed


def regress_experts(
    model: LanguageModel, experts: Sequence[Expert], tasks: Mapping[str, Sequence[Task]]
) -> list[Expert]:
    """Experts whose sum is the RegMean merge of the given ones.

    The inputs of an expert come from the model merged with this expert alone: they are the inputs
    of its modules while this model reads examples and their right answers. Every example takes one
    forward pass, which those of one length share. It takes several if the Gram matrices of all
    modules, D x D in float32, would exceed `model.max_memory`.

    :param model: the base.
    :param experts: n adapters that fit it (`check_fit`).
    :param tasks: by the name of the expert, the tasks that it was made for.
    :return: the n experts with other A, of the same ranks and scales, in float32 on the CPU.
    :raises ValueError: if an expert has no task or one of them twice, if a name is none of an
        expert, or if the model with an expert gives numbers that are not finite.
    """
    _check_tasks(experts, tasks)
    check_modules(experts)
    requests = []
    for expert in experts:
        own = []
        for task in tasks[expert.name]:
            own += requests_of(task, model)
        requests.append(own)
    weights = [[1.0] * len(own) for own in requests]
    stacked = stack_experts(experts, model.model.dtype, model.device, model.model)
    return regress_on_inputs(model, experts, stacked, requests, weights)


def regress_on_inputs(
    model: LanguageModel,
    experts: Sequence[Expert],
    stacked: Mapping[str, StackedModule],
    requests: Sequence[Sequence[Request]],
    weights: Sequence[Sequence[float]],
) -> list[Expert]:
    """Experts whose sum is the RegMean merge, each on the inputs that it has on texts.

    :param stacked: the n experts, as `stack_experts` returns them.
    :param requests: by expert, the texts that the model merged with it reads.
    :param weights: by expert, how often each of its texts counts.
    :return: the n experts with other A.
    :raises ValueError: if an input is not finite.
    """
    modules: list[dict[str, Factors]] = [{} for _ in experts]
    for chunk in _chunks(experts, list(stacked), model.max_memory):
        grams = {}
        for name in chunk:
            grams[name] = _empty_grams(experts, name, stacked[name].a.device)
        for index, row in enumerate(torch.eye(len(experts))):
            with merged(model.model, stacked, row):
                _add_inputs(model, requests[index], weights[index], grams, index)
        for name in chunk:
            gram = grams.pop(name)
            _check_finite(gram, experts, name)
            for index, a in gram.regressed().items():
                modules[index][name] = replace(experts[index].modules[name], a=a)
    return with_modules(experts, modules)


def with_modules(experts: Sequence[Expert], modules: Sequence[dict[str, Factors]]) -> list[Expert]:
    """The same experts with other factors.

    :param modules: by expert, its factors by module name.
    """
    changed = []
    for expert, own_modules in zip(experts, modules, strict=True):
        changed.append(replace(expert, modules=own_modules))
    return changed


def beside(given: Sequence[Expert], regressed: Sequence[Expert]) -> list[Expert]:
    """The n experts as they are, and then the same ones regressed, with `REGRESSED` in their names.

    :return: 2n experts.
    :raises ValueError: if an expert as it is has the name of a regressed one.
    """
    names = {expert.name for expert in given}
    experts = list(given)
    for expert in regressed:
        name = expert.name + REGRESSED
        if name in names:
            found = f"found {name!r} beside {expert.name!r}; give it another name"
            raise ValueError(f"keep_experts: expected no expert with the name of another, {found}")
        experts.append(replace(expert, name=name))
    return experts


def _check_tasks(experts: Sequence[Expert], tasks: Mapping[str, Sequence[Task]]) -> None:
    """Refuse what is not at least one task for every expert.

    :raises ValueError: one sentence saying for which expert.
    """
    if not isinstance(tasks, Mapping):
        raise ValueError(
            "regmean: expected 'weights', 'prompts' or a mapping of experts to their tasks, "
            f"found {type(tasks).__name__}"
        )
    names = [expert.name for expert in experts]
    for name in tasks:
        if name not in names:
            raise ValueError(
                f"regmean: expected names of experts ({', '.join(names)}), found {name!r}"
            )
    for name in names:
        _check_tasks_of_expert(name, tasks.get(name))


def _check_tasks_of_expert(expert: str, tasks: object) -> None:
    if not tasks:
        raise ValueError(
            f"regmean: expected a task that expert {expert!r} was made for, found none"
        )
    if not isinstance(tasks, Sequence) or not all(isinstance(task, Task) for task in tasks):
        raise ValueError(
            f"regmean: expected for expert {expert!r} a list of tasks, found {type(tasks).__name__}"
        )
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ValueError(
            f"regmean: expected for expert {expert!r} every task once, found {', '.join(names)}"
        )


def check_modules(experts: Sequence[Expert]) -> None:
    """Refuse experts of parameters: the inputs of a single matrix among several are not seen.

    :raises ValueError: one sentence saying which.
    """
    for expert in experts:
        for name, factors in expert.modules.items():
            if factors.is_parameter:
                raise ValueError(
                    f"regmean: expected experts of layers, found {name} in {expert.name!r}, "
                    "which is a parameter of another module; search without regmean"
                )


def _chunks(
    experts: Sequence[Expert], names: Sequence[str], max_memory: int
) -> Iterator[list[str]]:
    """Split modules into chunks whose Gram matrices take at most `max_memory` bytes together.

    A module that takes more is a chunk of its own.
    """
    factors: dict[str, Factors] = {}
    for expert in experts:
        factors.update(expert.modules)
    chunk: list[str] = []
    taken = 0
    for name in names:
        width = factors[name].a.shape[1]
        size = 0 if factors[name].embedding else 4 * width * width
        if chunk and taken + size > max_memory:
            yield chunk
            chunk = []
            taken = 0
        chunk.append(name)
        taken += size
    if chunk:
        yield chunk


def _empty_grams(experts: Sequence[Expert], name: str, device: torch.device) -> Grams:
    """Grams of a module before any token."""
    factors = {}
    for index, expert in enumerate(experts):
        if name in expert.modules:
            factors[index] = expert.modules[name]
    width = next(iter(factors.values())).a.shape[1]
    return Grams(factors, width, len(experts), device)


@torch.no_grad()
def _add_inputs(
    model: LanguageModel,
    requests: Sequence[Request],
    weights: Sequence[float],
    grams: Mapping[str, Grams],
    index: int,
) -> None:
    """Run the model on requests, and add the inputs of every module to its Grams.

    Texts of one length share a pass. A text has one of its own for modules that cannot tell it from
    the others.

    :param weights: how often each request counts.
    :param index: of the expert that the inputs belong to.
    """
    texts = [prompt + answer for prompt, answer in requests]
    left = _add_passes(model, texts, weights, grams, index)
    for place, names in sorted(left.items()):
        alone = {name: grams[name] for name in names}
        _add_passes(model, [texts[place]], [weights[place]], alone, index)


def _add_passes(
    model: LanguageModel,
    texts: Sequence[Sequence[int]],
    weights: Sequence[float],
    grams: Mapping[str, Grams],
    index: int,
) -> dict[int, set[str]]:
    """Run the model on texts, those of one length together, and add inputs to Grams.

    :return: by the place of a text the modules to which its inputs were not added. In a mixture of
        experts a module sees tokens of several texts in one row, without their places.
    """
    left: dict[int, set[str]] = {}
    places: list[int] = []  # of the texts of a pass
    tokens = torch.zeros(0, 0)  # (P, T)
    of_tokens = torch.ones(1)  # (P T,), or (1,) of a single text

    def add_to(name: str) -> Callable:
        def add(layer, inputs):
            found = inputs[0]
            of_texts = found if grams[name].embedding else found[..., 0]
            if len(places) > 1 and of_texts.shape != tokens.shape:
                for place in places:
                    left.setdefault(place, set()).add(name)
            else:
                grams[name].add(index, found, of_tokens)

        return add

    handles = []
    try:
        for name in grams:
            handles.append(model.model.get_submodule(name).register_forward_pre_hook(add_to(name)))
        for places, tokens in passes(texts):
            of_tokens = torch.tensor([weights[place] for place in places])
            if len(places) > 1:
                of_tokens = of_tokens.repeat_interleave(tokens.shape[1])
            run_pass(model, tokens)
    finally:
        for handle in handles:
            handle.remove()
    return left


def _check_finite(grams: Grams, experts: Sequence[Expert], module: str) -> None:
    for expert, diagonal in zip(experts, grams.diagonals, strict=True):
        if not diagonal.isfinite().all():
            raise ValueError(
                f"regmean: expected finite inputs of {module}, "
                f"found others with expert {expert.name!r}"
            )
