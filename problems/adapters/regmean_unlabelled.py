"""RegMean without knowledge of the tasks that experts were made for, see `regmean.py`.

The merge of a module is W = W_0 + sum_k s_k B_k A_k G_k (sum_j G_j)^-1 as there. What differs are
the Gram matrices G_k.

- `regress_on_prompts`: all experts read the same prompts, without answers. A prompt counts more
  for the experts that predict its next token with less entropy.
- `regress_on_weights`: no text at all. The rows of A_k span the inputs that expert k acts on, and
  stand for its inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.adapters.passes import passes, run_pass
from evox_evogm.problems.adapters.read_adapter import Expert, Factors
from evox_evogm.problems.adapters.regmean import (
    check_modules,
    regress_experts,
    regress_on_inputs,
    with_modules,
)
from evox_evogm.problems.adapters.stacked_modules import StackedModule, stack_experts
from evox_evogm.problems.inference.kinds_of_base import check_causal
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.prompts import Request
from evox_evogm.problems.inference.scored_model import ScoredModel
from evox_evogm.problems.inference.texts import reading_texts
from evox_evogm.problems.tasks.requests import cases_or_all, prompts_of, tokenize_task
from evox_evogm.problems.tasks.task import Task

# In nats, see `benchmarks/results/regmean.md`. With 0 a prompt would count for a single expert, and
# the other experts might get none.
TEMPERATURE = 0.2


def regress(
    model: ScoredModel,
    experts: Sequence[Expert],
    regmean: Mapping[str, Sequence[Task]] | str,
    tasks: Sequence[Task],
) -> list[Expert]:
    """Experts whose sum is the RegMean merge of the given ones.

    :param model: the base.
    :param experts: n adapters that fit it (`check_fit`).
    :param regmean: `"weights"`, `"prompts"`, or by the name of the expert the tasks that it was
        made for.
    :param tasks: of whose prompts `"prompts"` are.
    :return: the n experts with other A, of the same ranks and scales, in float32 on the CPU.
    :raises ValueError: if experts cannot be regressed so, in one sentence.
    """
    if regmean == "weights":
        return regress_on_weights(experts)
    model = reading_texts(model)
    check_causal(model.model, "regmean", 'take "weights", which needs no forward pass')
    if not isinstance(regmean, str):
        return regress_experts(model, experts, regmean)
    if regmean == "prompts":
        return regress_on_prompts(model, experts, tasks)
    expected = "expected 'weights', 'prompts' or a mapping of experts to their tasks"
    raise ValueError(f"regmean: {expected}, found {regmean!r}")


def regress_on_prompts(
    model: LanguageModel, experts: Sequence[Expert], tasks: Sequence[Task]
) -> list[Expert]:
    """Experts whose sum is the RegMean merge, by prompts without answers.

    Expert k has the Gram matrix G_k = sum_i w_ki X_ki^T X_ki. X_ki are the inputs of the module
    while the model merged with expert k alone reads prompt i. The weights of a prompt are

        w_ki = exp(-H_ki / T) / sum_j exp(-H_ji / T),

    with the entropy H_ki of the next token behind prompt i, in nats, and T = `TEMPERATURE`: a
    model is surer of its answer on tasks that it was trained on. What is off the diagonals, and
    the ridge, are as in `regress_experts`. A prompt takes two forward passes for each expert, which
    prompts of one length share, and more if the Gram matrices of all modules would exceed
    `model.max_memory`.

    :param model: the base.
    :param experts: n adapters that fit it (`check_fit`).
    :param tasks: whose prompts are read, by all experts.
    :return: the n experts with other A, of the same ranks and scales, in float32 on the CPU.
    :raises ValueError: if the base cannot take a prompt, or if the model with an expert gives
        numbers that are not finite.
    """
    check_modules(experts)
    prompts: list[Request] = []
    for task in tasks:
        tokenize_task(task, model)  # refuses what the base cannot take
        for prompt in prompts_of(task, model, cases_or_all(task, None)):
            prompts.append((prompt, ()))
    stacked = stack_experts(experts, model.model.dtype, model.device, model.model)
    entropies = _entropies(model, experts, stacked, prompts)  # (n, N)
    weights = (-entropies / TEMPERATURE).softmax(0)
    requests = [prompts] * len(experts)
    return regress_on_inputs(model, experts, stacked, requests, weights.tolist())


@torch.no_grad()
def _entropies(
    model: LanguageModel,
    experts: Sequence[Expert],
    stacked: Mapping[str, StackedModule],
    prompts: Sequence[Request],
) -> torch.Tensor:
    """The entropy of the next token behind N prompts, with each expert alone.

    :return: `(n, N)` in nats.
    :raises ValueError: if one is not finite, naming the expert.
    """
    entropies = torch.zeros(len(experts), len(prompts), dtype=torch.float64)
    for index, row in enumerate(torch.eye(len(experts))):
        with merged(model.model, stacked, row):
            for places, tokens in passes([prompt for prompt, _ in prompts]):
                shares = run_pass(model, tokens).double().softmax(-1)  # (P, V)
                entropies[index, places] = torch.special.entr(shares).sum(-1).cpu()
        if not entropies[index].isfinite().all():
            raise ValueError(
                "regmean: expected finite predictions of the next token, "
                f"found others with expert {experts[index].name!r}"
            )
    return entropies


def regress_on_weights(experts: Sequence[Expert]) -> list[Expert]:
    """Experts whose sum is a RegMean merge that needs no text and no forward pass.

    In a module with factors of m experts, expert k has the Gram matrix

        G_k = I + r_k A_k^T A_k / |A_k|^2,

    with the Frobenius norm. It counts once for every input, and once more, in the mean over the r_k
    eigenvalues, for the inputs that its A_k reads. So the size of A_k does not matter. Of an
    embedding only the diagonal counts, divided by its mean over the V tokens:

        G_k = I + V diag(A_k^T A_k) / |A_k|^2.

    Experts without factors in a module do not count there. Where one expert has some, they stay as
    they are. Other factors A and B of the same product give another merge.

    :param experts: n adapters that fit one base (`check_fit`).
    :return: the n experts with other A, of the same ranks and scales, in float32 on the CPU.
    :raises ValueError: if experts are of parameters.
    """
    check_modules(experts)
    names = sorted({name for expert in experts for name in expert.modules})
    modules: list[dict[str, Factors]] = [{} for _ in experts]
    for name in names:
        having = [index for index, expert in enumerate(experts) if name in expert.modules]
        factors = [experts[index].modules[name] for index in having]
        regressed = [one.a for one in factors]
        if len(factors) > 1:
            regressed = _share_tokens(factors) if factors[0].embedding else _share_inputs(factors)
        for index, one, a in zip(having, factors, regressed, strict=True):
            modules[index][name] = replace(one, a=a)
    return with_modules(experts, modules)


def _share_inputs(factors: Sequence[Factors]) -> list[torch.Tensor]:
    """A_k G_k (sum_j G_j)^-1 `(r, D)` of the m experts of a layer.

    With the rows U of all sqrt(r_k) A_k / |A_k| the sum is m I + U^T U. Its inverse is
    (I - U^T (m I + U U^T)^-1 U) / m, for which a matrix of the sum of ranks is inverted, not D x D.
    """
    rows = []  # (r, D) each
    weighted = []  # A_k G_k
    for one in factors:
        a = one.a.double()
        unit = _over_norm(a) * len(a) ** 0.5
        rows.append(unit)
        weighted.append(a + a @ unit.mT @ unit)
    u = torch.cat(rows)  # (R, D)
    count = len(factors)
    inner = count * torch.eye(len(u), dtype=u.dtype, device=u.device) + u @ u.mT
    solved = torch.linalg.solve(inner, u)  # (R, D)
    return [((a - a @ u.mT @ solved) / count).float() for a in weighted]


def _share_tokens(factors: Sequence[Factors]) -> list[torch.Tensor]:
    """A_k G_k (sum_j G_j)^-1 `(r, V)` of the experts of an embedding."""
    diagonals = []
    for one in factors:
        squares = _over_norm(one.a.double()).square().sum(0)  # (V,)
        diagonals.append(1 + len(squares) * squares)
    total = torch.stack(diagonals).sum(0)
    regressed = []
    for one, diagonal in zip(factors, diagonals, strict=True):
        regressed.append((one.a.double() * (diagonal / total)).float())
    return regressed


def _over_norm(a: torch.Tensor) -> torch.Tensor:
    """A over its Frobenius norm; 0 stays 0."""
    norm = torch.linalg.matrix_norm(a)
    return a / norm if norm > 0 else a
