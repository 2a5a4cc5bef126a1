"""The exact merge: theta(lambda) = theta_pre + sum_k lambda_k s_k B_k A_k, without dense deltas.

The factors of all experts are stacked once per module: A = [A_1; ...; A_n], B = [B_1, ..., B_n].
A candidate only scales the channels between A and B: y = x W^T + ((x A^T) * c) B^T, with
c = repeat(lambda_k s_k, r_k). An expert may have a coefficient per group of modules
or channel (`groups.py`). There are two modes.

- Unmerged (`merged`, here): hooks add the experts' part, and the rows of one batch may belong to
  different candidates (`population.py`). Layers with the same input share a product
  (`shared_inputs.py`). Parameters that are no weights of layers go to the rows of their candidates
  (`candidate_parameters.py`).
- Merged (`weight_merger.py`): one candidate goes into the weights, and every token then costs what
  it costs in the base.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.adapters.candidate_parameters import parameters_by_row
from evox_evogm.problems.adapters.layers import keeps_inputs_first, weight_of
from evox_evogm.problems.adapters.population import Population
from evox_evogm.problems.adapters.stacked_modules import StackedModule

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def merged(
    model: "PreTrainedModel",
    modules: Mapping[str, StackedModule],
    coefficients: torch.Tensor,
    *,
    own_rows: bool = False,
) -> Iterator[Population]:
    """Inside the block the model computes as if merged; afterwards it is as it was.

    The weights do not change: hooks add the experts' part to the outputs of their modules. A module
    whose own parameters experts change is given others while it runs.

    :param model: the base model.
    :param modules: the experts, as `stack_experts` returns them.
    :param coefficients: an `(n g,)` tensor of effective coefficients, or a `(P, n g)` tensor of
        several candidates.
    :param own_rows: whether derivatives by the coefficients of each row are taken, see
        `Population`.
    :return: the candidates. Every row belongs to the first one until `select` says otherwise.
    """
    population = Population(modules, torch.atleast_2d(coefficients), own_rows=own_rows)
    with ExitStack() as stack:
        parameters = []
        for name, module in population.modules.items():
            if module.is_parameter:
                parameters.append(name)
                continue
            layer = model.get_submodule(name)
            is_output = layer is model.get_output_embeddings()
            hook = _expert_hook(population, name, output=is_output)
            stack.callback(layer.register_forward_hook(hook).remove)
        if parameters:
            stack.enter_context(_parameters_of(model, population, parameters))
        yield population


def _expert_hook(population: Population, name: str, *, output: bool) -> Callable:
    module = population.modules[name]

    def add_experts(layer, inputs, result):
        channels = population.channels(layer, name, inputs[0], output=output)  # (..., R)
        if channels.requires_grad or not result.is_contiguous():
            return result + channels @ module.b.mT
        # In place, so that the result is written once.
        result.view(-1, result.shape[-1]).addmm_(channels.flatten(0, -2), module.b.mT)
        return result

    return add_experts


def _parameters_of(
    model: "PreTrainedModel", population: Population, names: list[str]
) -> AbstractContextManager[None]:
    """Inside the block, modules have the parameters of the candidates of their rows."""

    def parameter_of(name: str, candidate: int) -> torch.Tensor:
        channels = population.weights[name][candidate]
        return merge_weight(model, name, population.modules[name], channels)

    def owners_of(rows: int) -> int | torch.Tensor:
        return population.owners_of_rows(rows, model.device)

    return parameters_by_row(model, names, parameter_of, owners_of)


def merge_weight(
    model: torch.nn.Module,
    name: str,
    module: StackedModule,
    channels: torch.Tensor,
    *,
    original: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weight of a layer, or a parameter, with the experts of a candidate.

    :param channels: an `(R,)` tensor, the weights of the channels.
    :param original: what the experts are added to. Defaults to the weight.
    :param out: written to if given.
    """
    if original is None:
        original = weight_of(model, name).detach()
    if keeps_inputs_first(model, name):
        left, right = module.a.mT * channels, module.b.mT
    else:
        left, right = module.b * channels, module.a
    add_product = torch.addmm if left.ndim == 2 else torch.baddbmm
    return add_product(original, left, right, out=out)
