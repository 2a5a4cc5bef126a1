"""RankMean: G. Perin, X. Chen, S. Liu, B. Kailkhura, Z. Wang and B. Gallagher, "RankMean:
Module-Level Importance Score for Merging Fine-tuned LLM Models", Findings of ACL 2024.

An expert weighs more in those parts of the model that it has changed most, compared with its other
parts. Parts are decoder layers, or in the finer form single weights. No data is read.

1. The change of a part by an expert is sum |theta_i - theta_pre| over its parameters.
2. The parts of each expert are ranked by it; 1 is the smallest change.
3. In each part expert i weighs rank_i / (the sum of the ranks of all experts).
4. Parameters outside of decoder layers are averaged.

The published code is for two experts; this is the obvious form for n. Where it leaves something
open: parts that an expert changes equally, such as not at all, are ranked in the order of the
model, and weights that no expert changes are no parts.
"""

from collections.abc import Mapping, Sequence

import torch

from benchmarks.static_merges.dense import Weights
from evox_evogm.problems import LoRAMergeProblem
from evox_evogm.problems.adapters.groups import REST, Groups, group_modules
from evox_evogm.problems.adapters.stacked_modules import StackedModule

PARTS = ("layer", "module")  # as `group_modules` has them


def rank_mean(problem: LoRAMergeProblem, parts: str) -> Weights:
    """The merged weights of every module that an expert changes.

    :param problem: whose model and experts are merged.
    :param parts: `"layer"`, or `"module"` for the finer form.
    """
    groups = group_modules(dict.fromkeys(problem.stacked, 1), parts)
    inside = in_layers(problem.stacked)
    weights = part_weights(problem, groups, inside)
    model = problem.language_model.model
    merge = {}
    for name, module in problem.stacked.items():
        own = torch.full((problem.n_experts,), 1 / problem.n_experts)
        if name in inside:
            own = weights[:, groups.of_module[name]]
        merge[name] = model.get_submodule(name).weight.detach() + delta(module, own)
    return merge


def part_weights(problem: LoRAMergeProblem, groups: Groups, inside: Sequence[str]) -> torch.Tensor:
    """What each expert weighs in each part.

    :param groups: of the modules, g parts.
    :param inside: the names of the modules in decoder layers; the other parts are not ranked.
    :return: an `(n, g)` tensor whose columns sum to 1; those of parts outside of layers are 0.
    """
    changes = torch.zeros(problem.n_experts, groups.count)
    for name in inside:
        for expert, row in enumerate(torch.eye(problem.n_experts)):
            change = delta(problem.stacked[name], row).abs().sum()
            changes[expert, groups.of_module[name]] += change
    parts = sorted({groups.of_module[name] for name in inside})
    weights = torch.zeros_like(changes)
    weights[:, parts] = rank_weights(changes[:, parts])
    return weights


def rank_weights(changes: torch.Tensor) -> torch.Tensor:
    """Steps 2 and 3: what each expert weighs in each part.

    :param changes: an `(n, L)` tensor, the change of L parts by n experts.
    :return: an `(n, L)` tensor whose columns sum to 1.
    """
    ranks = changes.argsort(dim=1, stable=True).argsort(dim=1) + 1.0  # (n, L)
    return ranks / ranks.sum(0)


def in_layers(modules: Mapping[str, StackedModule]) -> list[str]:
    """The names of the modules that are in decoder layers."""
    layers = group_modules(dict.fromkeys(modules, 1), "layer")
    return [name for name in modules if layers.names[layers.of_module[name]] != REST]


def delta(module: StackedModule, coefficients: torch.Tensor) -> torch.Tensor:
    """What a merge adds to the weight of a module, a `(D_out, D_in)` tensor.

    :param coefficients: an `(n,)` tensor.
    """
    return (module.b * module.channel_weights(coefficients)) @ module.a
