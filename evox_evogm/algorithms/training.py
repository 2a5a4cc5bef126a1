"""Training the generators on the history of a round: the loss with its gradient, Adam, and the loop of epochs.

    loss = a_c [ MSE(Gb(G(l)), l) + MSE(G(Gb(w)), w) ] + a_o MSE(G(l), mean of the winners)

for winners w and losers l; G moves losers to winners, Gb back (Jiang et al., arXiv 2605.29295, section 2.2). One epoch is
one full-batch step on all winners and as many losers, drawn independently. The loop is one operator, opaque to
`torch.compile` (so that epochs are not unrolled) and batched over the runs of a `vmap`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from evox.utils import register_vmap_op
from torch.optim.adam import adam

from evox_evogm.algorithms.archive import draw_losers, winner_count
from evox_evogm.algorithms.generators import (
    Layers,
    backward,
    forward,
    initial_parameters,
    layer_by_layer,
    pack,
    parameter_gradients,
)
from evox_evogm.algorithms.vmap_operator import flatten_lead

SCHEMA = (
    "(Tensor parameters, Tensor moments, Tensor steps, Tensor points, Tensor count, Tensor draws, Tensor settings, "
    "Tensor seed, int[] sizes) -> (Tensor, Tensor, Tensor)"
)
RUNS_AT_ONCE_ON_CPU = 2  # so few that their weights, gradients and moments stay in the cache (benchmarks/step_speed.py)


class Pass(NamedTuple):
    """What B rows leave in the layers on their way through the generators."""

    inputs: list[torch.Tensor]  # per layer (M, B, d_in)
    deltas: list[
        torch.Tensor
    ]  # per layer (M, B, d_out), the gradient with respect to what weight and bias give


class LossGradient:
    """The gradient of the loss of K runs, whose generators are G, Gb, G, Gb, ... (M = 2 K) or G, G, ... (M = K, no cycles).

    Rows go there through every generator and back through the other one. What both ways leave in a layer stands in one
    tensor, so that one product gives the gradient of its weight.
    """

    def __init__(
        self,
        layers: Layers,
        gradients: Layers,
        target: torch.Tensor,
        cycle_scale: torch.Tensor,
        opt_scale: torch.Tensor,
        *,
        batch: int,
        dual: bool,
    ):
        """Make room for the passes.

        :param layers: of the M generators.
        :param gradients: of the same form; every call overwrites them.
        :param target: a `(K, 1, 1, n)` tensor, the mean of the winners.
        :param cycle_scale: a `(K, 1, B, 1)` tensor, what the square of an error of one coordinate counts in the cycle loss.
        :param opt_scale: the same for the optimisation loss.
        :param batch: B, rows of a generator.
        :param dual: whether the generators come in pairs.
        """
        self.layers, self.gradients, self.dual = layers, gradients, dual
        self.target, self.twice_cycle_scale, self.twice_opt_scale = (
            target,
            2 * cycle_scale,
            2 * opt_scale,
        )
        weights = [weight for weight, _ in layers]
        rows = 2 * batch if dual else batch
        inputs, self.deltas = (
            [w.new_empty(len(w), rows, w.shape[side]) for w in weights] for side in (1, 2)
        )
        self.there, self.back = (
            Pass(
                *(
                    [tensor[:, start : start + batch] for tensor in tensors]
                    for tensors in (inputs, self.deltas)
                )
            )
            for start in (0, batch)
        )
        self.transposed_weights = [weight.mT for weight in weights]
        self.transposed_inputs = [tensor.mT for tensor in inputs]

    def __call__(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the gradient.

        :param points: a `(K, 2, B, n)` tensor of losers and winners, or without pairs a `(K, 1, B, n)` tensor of losers.
        :return: the `(K, 2, B, n)` errors of the cycles (zeros without pairs), and the `(K, 1, B, n)` distances from the
            target.
        """
        by_network = (-1, *points.shape[2:])  # (M, B, n)
        there, back = self.there, self.back
        there.inputs[0].copy_(points.view(by_network))
        moved = forward(self.layers, there.inputs)  # G(l), Gb(w)
        miss = moved.view(points.shape)[:, :1] - self.target
        if not self.dual:
            error, moved_gradient = torch.zeros_like(miss), self.twice_opt_scale * miss
        else:
            back.inputs[0].copy_(moved.view(points.shape).flip(1).view(by_network))
            returned = forward(self.layers, back.inputs)  # G(Gb(w)), Gb(G(l))
            error = returned.view(points.shape) - points.flip(1)
            error_gradient = (self.twice_cycle_scale * error).view(by_network)
            backward(self.transposed_weights, back.inputs, returned, error_gradient, back.deltas)
            moved_gradient = (
                torch.bmm(back.deltas[0], self.transposed_weights[0]).view(points.shape).flip(1)
            )
            moved_gradient[:, :1].addcmul_(self.twice_opt_scale, miss)
        backward(
            self.transposed_weights,
            there.inputs,
            moved,
            moved_gradient.view(by_network),
            there.deltas,
        )
        parameter_gradients(self.gradients, self.transposed_inputs, self.deltas)
        return error, miss


class Adam:
    """torch's fused Adam (Kingma and Ba, 2015; its defaults) for the generators of K runs.

    One call serves all runs where they have the same learning rate and step, else there is one for each.
    """

    def __init__(
        self, tensors: Sequence[tuple[torch.Tensor, Layers]], lr: torch.Tensor, steps: torch.Tensor
    ):
        """Prepare the calls.

        :param tensors: parameters, gradients, first and second moments, each with its layers.
        :param lr: a `(K,)` tensor.
        :param steps: a `(K,)` tensor, steps taken before.
        """
        settings = list(zip(lr.tolist(), steps.tolist(), strict=True))
        if len(set(settings)) == 1:
            settings, parts = settings[:1], [[[whole] for whole, _ in tensors]]
        else:
            by_run = [
                [[part.chunk(len(settings)) for part in layer] for layer in layers]
                for _, layers in tensors
            ]
            parts = [
                [[part[run] for layer in layers for part in layer] for layers in by_run]
                for run in range(len(settings))
            ]
        self.calls = [
            (
                part,
                [torch.full((), step, dtype=torch.float32, device=lr.device) for _ in part[0]],
                rate,
            )
            for part, (rate, step) in zip(parts, settings, strict=True)
        ]

    def step(self) -> None:
        """Change parameters and moments by one step."""
        for part, steps, rate in self.calls:
            adam(
                *part,
                [],
                steps,
                fused=True,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=rate,
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )


def train_together(
    parameters: torch.Tensor,
    moments: torch.Tensor,
    steps: torch.Tensor,
    points: torch.Tensor,
    count: torch.Tensor,
    draws: torch.Tensor,
    settings: torch.Tensor,
    sizes: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`train_runs` for runs that are all trained, and in one batch."""
    runs, networks, _ = parameters.shape
    dim = points.shape[2]
    lr, winner_ratio, cycle_weight, opt_weight = settings.unbind(1)
    winners = winner_count(count, winner_ratio).minimum(count)  # (K,)
    rows = torch.arange(int(winners.max()), device=points.device)  # (B,)
    row_weights = (rows < winners[:, None]) / winners[:, None].to(
        points.dtype
    )  # (K, B), 0 beyond a run's own winners
    winner_points = points[:, : len(rows)]  # (K, B, n)
    target = (row_weights[..., None] * winner_points).sum(1)[:, None, None]  # (K, 1, 1, n)
    loser_rows = draw_losers(
        draws[:, :, : len(rows)], winners[:, None, None], count[:, None, None]
    )  # (K, E, B)
    mean = (
        row_weights[:, None, :, None] / dim
    )  # (K, 1, B, 1), weighs squares of errors so that their sum is the mean
    cycle_scale, opt_scale = (
        weight[:, None, None, None] * mean for weight in (cycle_weight, opt_weight)
    )

    flat, layers = layer_by_layer(parameters.flatten(0, 1), sizes)
    first, second = (layer_by_layer(moment.flatten(0, 1), sizes) for moment in moments.unbind(1))
    gradient, gradients = layer_by_layer(torch.empty_like(parameters).flatten(0, 1), sizes)
    optimizer = Adam([(flat, layers), (gradient, gradients), first, second], lr, steps)
    write_gradient = LossGradient(
        layers, gradients, target, cycle_scale, opt_scale, batch=len(rows), dual=networks == 2
    )
    batch = winner_points[:, None].repeat(1, networks, 1, 1)  # (K, G, B, n)
    for epoch in range(draws.shape[1]):
        batch[:, 0] = points.gather(1, loser_rows[:, epoch, :, None].expand(-1, -1, dim))
        error, miss = write_gradient(batch)
        optimizer.step()
    losses = torch.stack([(mean * difference**2).sum((1, 2, 3)) for difference in (error, miss)], 1)
    parameters, *moments = (
        pack(tensors).unflatten(0, (runs, networks)) for tensors in (layers, first[1], second[1])
    )
    return parameters, torch.stack(moments, 1), losses


def train_runs(
    parameters: torch.Tensor,
    moments: torch.Tensor,
    steps: torch.Tensor,
    points: torch.Tensor,
    count: torch.Tensor,
    draws: torch.Tensor,
    settings: torch.Tensor,
    seed: torch.Tensor,
    sizes: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Train the generators of K runs for E epochs, or make fresh ones.

    :param parameters: a `(K, G, N)` tensor; G is 2 (G and Gb) or 1 (G alone).
    :param moments: a `(K, 2, G, N)` tensor, Adam's moments.
    :param steps: a `(K,)` tensor, Adam steps taken before; negative asks for fresh generators, which are not trained.
    :param points: a `(K, C, n)` tensor, the history with the best first.
    :param count: a `(K,)` tensor, rows in use.
    :param draws: a `(K, E, C)` tensor of uniform numbers that choose the losers.
    :param settings: a `(K, 4)` tensor: learning rate, winner ratio, a_c, a_o.
    :param seed: a `(K,)` tensor of whole numbers, of the fresh generators.
    :param sizes: layer sizes of a generator.
    :return: new parameters, new moments, and the `(K, 2)` cycle and optimisation losses of the last epoch, before weighting.
    """
    networks, dtype, device = parameters.shape[1], parameters.dtype, parameters.device
    results = (
        torch.empty_like(parameters),
        torch.empty_like(moments),
        torch.empty_like(settings[:, :2]),
    )
    for run in (steps < 0).nonzero().flatten().tolist():
        results[0][run] = initial_parameters(sizes, networks, dtype, device, int(seed[run]))
        results[1][run], results[2][run] = 0, 0
    active = (steps >= 0).nonzero().flatten()
    at_once = RUNS_AT_ONCE_ON_CPU if device.type == "cpu" else max(1, len(active))
    for chosen in active.split(at_once) if len(active) else ():
        tensors = (parameters, moments, steps, points, count, draws, settings)
        trained = train_together(*(tensor[chosen] for tensor in tensors), sizes)
        for result, values in zip(results, trained, strict=True):
            result[chosen] = values
    return results


def _shapes(parameters, moments, steps, points, count, draws, settings, seed, sizes):
    losses = settings.new_empty((*settings.shape[:-1], 2))
    return torch.empty_like(parameters), torch.empty_like(moments), losses


OWN_DIMS = (
    2,
    3,
    0,
    2,
    0,
    2,
    1,
    0,
)  # dimensions of the tensors of `train`; vmap adds others before them


def _batched(*arguments):
    """`train_runs` over all leading dimensions that vmap has added."""
    *tensors, sizes = arguments
    lead, flat = flatten_lead(tensors, OWN_DIMS)
    return tuple(result.unflatten(0, lead) for result in train_runs(*flat, sizes))


def _batched_shapes(*arguments):
    *tensors, _ = arguments
    (parameters, moments, *_, settings, _), lead = tensors, flatten_lead(tensors, OWN_DIMS)[0]
    return (
        parameters.new_empty(*lead, *parameters.shape[-2:]),
        moments.new_empty(*lead, *moments.shape[-3:]),
        settings.new_empty(*lead, 2),
    )


@register_vmap_op(
    name="evogm::train",
    schema=SCHEMA,
    fake_fn=_shapes,
    vmap_fn=_batched,
    fake_vmap_fn=_batched_shapes,
    vmap_out_dims=(0, 0, 0),
    max_vmap_level=2,  # the runs of a workflow, and those inside one evaluation of hyper-parameters
)
def train(
    parameters: torch.Tensor,
    moments: torch.Tensor,
    steps: torch.Tensor,
    points: torch.Tensor,
    count: torch.Tensor,
    draws: torch.Tensor,
    settings: torch.Tensor,
    seed: torch.Tensor,
    sizes: list[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`train_runs` for one run: the same arguments without their first dimension."""
    tensors = (parameters, moments, steps, points, count, draws, settings, seed)
    return tuple(result[0] for result in train_runs(*(tensor[None] for tensor in tensors), sizes))
