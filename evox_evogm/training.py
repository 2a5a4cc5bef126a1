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

from evox_evogm.archive import draw_losers, winner_count
from evox_evogm.generators import Layers, backward, forward, layer_by_layer, pack, parameter_gradients

SCHEMA = (
    "(Tensor parameters, Tensor moments, Tensor steps, Tensor points, Tensor count, Tensor draws, Tensor settings, "
    "int[] sizes) -> (Tensor, Tensor, Tensor)"
)
RUNS_AT_ONCE_ON_CPU = 4  # so few that their weights, gradients and moments stay in the cache (benchmarks/step_speed.py)


class Rows(NamedTuple):
    """What B rows of data leave in the layers of M generators, kept for the gradient of the weights."""

    inputs: list[torch.Tensor]  # per layer (M, B, d_in)
    deltas: list[torch.Tensor]  # per layer (M, B, d_out), the gradient with respect to what weight and bias give

    @classmethod
    def room(cls, layers: Layers, count: int) -> "Rows":
        """Room for `count` rows."""
        weights = [weight for weight, _ in layers]
        return cls(*([weight.new_empty(len(weight), count, weight.shape[side]) for weight in weights] for side in (1, 2)))

    def part(self, start: int, end: int) -> "Rows":
        """A view of some of the rows."""
        return Rows(*([tensor[:, start:end] for tensor in tensors] for tensors in self))


def loss_gradient(
    layers: Layers,
    gradients: Layers,
    points: torch.Tensor,
    target: torch.Tensor,
    cycle_scale: torch.Tensor,
    opt_scale: torch.Tensor,
    rows: Rows,
    there: Rows,
    back: Rows,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write the gradient of the loss of K runs to `gradients`.

    :param layers: of M = 2 K generators G, Gb, G, Gb, ..., or of M = K generators G (no cycle loss).
    :param gradients: of the same form, overwritten.
    :param points: a `(K, 2, B, n)` tensor of losers and winners, or a `(K, 1, B, n)` tensor of losers.
    :param target: a `(K, 1, 1, n)` tensor, the mean of the winners.
    :param cycle_scale: a `(K, 1, B, 1)` tensor, what the square of an error of one coordinate counts in the cycle loss.
    :param opt_scale: the same for the optimisation loss.
    :param rows: room that is overwritten, and its parts: `there`, B rows through the generators, and `back`, B rows through
        the other generators (none with a single generator).
    :return: the `(K, 2, B, n)` errors of the cycles (zeros without Gb), and the `(K, 1, B, n)` distances from the target.
    """
    by_network = (-1, *points.shape[2:])  # (M, B, n)
    there.inputs[0].copy_(points.view(by_network))
    moved = forward(layers, there.inputs)  # G(l), Gb(w)
    miss = moved.view(points.shape)[:, :1] - target
    if points.shape[1] == 1:
        backward(layers, there.inputs, moved, (2 * opt_scale * miss).view(by_network), there.deltas)
        parameter_gradients(gradients, rows.inputs, rows.deltas)
        return torch.zeros_like(miss), miss
    back.inputs[0].copy_(moved.view(points.shape).flip(1).view(by_network))
    returned = forward(layers, back.inputs)  # G(Gb(w)), Gb(G(l))
    error = returned.view(points.shape) - points.flip(1)
    backward(layers, back.inputs, returned, (2 * cycle_scale * error).view(by_network), back.deltas)
    moved_gradient = torch.bmm(back.deltas[0], layers[0][0].mT).view(points.shape).flip(1)
    moved_gradient[:, :1].addcmul_(opt_scale, miss, value=2)
    backward(layers, there.inputs, moved, moved_gradient.view(by_network), there.deltas)
    parameter_gradients(gradients, rows.inputs, rows.deltas)
    return error, miss


class Adam:
    """torch's fused Adam (Kingma and Ba, 2015; its defaults) for the generators of K runs.

    One call serves all runs where they have the same learning rate and step, else there is one for each.
    """

    def __init__(self, tensors: Sequence[tuple[torch.Tensor, Layers]], lr: torch.Tensor, steps: torch.Tensor):
        """Prepare the calls.

        :param tensors: parameters, gradients, first and second moments, each with its layers.
        :param lr: a `(K,)` tensor.
        :param steps: a `(K,)` tensor, steps taken before.
        """
        settings = list(zip(lr.tolist(), steps.tolist(), strict=True))
        if len(set(settings)) == 1:
            settings, parts = settings[:1], [[[whole] for whole, _ in tensors]]
        else:
            by_run = [[[part.chunk(len(settings)) for part in layer] for layer in layers] for _, layers in tensors]
            parts = [[[part[run] for layer in layers for part in layer] for layers in by_run] for run in range(len(settings))]
        self.calls = [
            (part, [torch.full((), float(step), device=lr.device) for _ in part[0]], rate)
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
    """`train_runs` for runs that are all trained, in one batch."""
    runs, networks, _ = parameters.shape
    dim = points.shape[2]
    lr, winner_ratio, cycle_weight, opt_weight = settings.unbind(1)
    winners = winner_count(count, winner_ratio).minimum(count)  # (K,)
    rows = torch.arange(int(winners.max()), device=points.device)  # (B,)
    row_weights = (rows < winners[:, None]) / winners[:, None].to(points.dtype)  # (K, B), 0 beyond a run's own winners
    winner_points = points[:, : len(rows)]  # (K, B, n)
    target = (row_weights[..., None] * winner_points).sum(1)[:, None, None]  # (K, 1, 1, n)
    loser_rows = draw_losers(draws[:, :, : len(rows)], winners[:, None, None], count[:, None, None])  # (K, E, B)
    mean = row_weights[:, None, :, None] / dim  # (K, 1, B, 1), weighs squares of errors so that their sum is the mean
    cycle_scale, opt_scale = (weight[:, None, None, None] * mean for weight in (cycle_weight, opt_weight))

    flat, layers = layer_by_layer(parameters.flatten(0, 1), sizes)
    first, second = (layer_by_layer(moment.flatten(0, 1), sizes) for moment in moments.unbind(1))
    gradient, gradients = layer_by_layer(torch.empty_like(parameters).flatten(0, 1), sizes)
    optimizer = Adam([(flat, layers), (gradient, gradients), first, second], lr, steps)
    inputs = winner_points[:, None].repeat(1, networks, 1, 1)  # (K, G, B, n)
    batch = len(rows)
    both = Rows.room(layers, networks * batch)
    there, back = both.part(0, batch), both.part(batch, 2 * batch)
    for epoch in range(draws.shape[1]):
        inputs[:, 0] = points.gather(1, loser_rows[:, epoch, :, None].expand(-1, -1, dim))
        error, miss = loss_gradient(layers, gradients, inputs, target, cycle_scale, opt_scale, both, there, back)
        optimizer.step()
    losses = torch.stack([(mean * difference**2).sum((1, 2, 3)) for difference in (error, miss)], 1)
    parameters, *moments = (pack(tensors).unflatten(0, (runs, networks)) for tensors in (layers, first[1], second[1]))
    return parameters, torch.stack(moments, 1), losses


def train_runs(
    parameters: torch.Tensor,
    moments: torch.Tensor,
    steps: torch.Tensor,
    points: torch.Tensor,
    count: torch.Tensor,
    draws: torch.Tensor,
    settings: torch.Tensor,
    sizes: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Train the generators of K runs for E epochs.

    :param parameters: a `(K, G, N)` tensor; G is 2 (G and Gb) or 1 (G alone).
    :param moments: a `(K, 2, G, N)` tensor, Adam's moments.
    :param steps: a `(K,)` tensor, Adam steps taken before; negative means that this run is not trained now.
    :param points: a `(K, C, n)` tensor, the history with the best first.
    :param count: a `(K,)` tensor, rows in use.
    :param draws: a `(K, E, C)` tensor of uniform numbers that choose the losers.
    :param settings: a `(K, 4)` tensor: learning rate, winner ratio, a_c, a_o.
    :param sizes: layer sizes of a generator.
    :return: new parameters, new moments, and the `(K, 2)` cycle and optimisation losses of the last epoch, before weighting.
    """
    parameters, moments, losses = parameters.clone(), moments.clone(), settings.new_zeros(len(settings), 2)
    active = (steps >= 0).nonzero().flatten()
    at_once = RUNS_AT_ONCE_ON_CPU if parameters.device.type == "cpu" else max(1, len(active))
    for chosen in active.split(at_once) if len(active) else ():
        tensors = (parameters, moments, steps, points, count, draws, settings)
        trained = train_together(*(tensor[chosen] for tensor in tensors), sizes)
        for result, values in zip((parameters, moments, losses), trained, strict=True):
            result[chosen] = values
    return parameters, moments, losses


def _shapes(parameters, moments, steps, points, count, draws, settings, sizes):
    losses = settings.new_empty((*settings.shape[:-1], 2))
    return torch.empty_like(parameters), torch.empty_like(moments), losses


def _batched(parameters, moments, steps, points, count, draws, settings, sizes):
    """`train_runs` over all leading dimensions that vmap has added."""
    tensors = (parameters, moments, steps, points, count, draws, settings)
    own_dims = (2, 3, 0, 2, 0, 2, 1)
    lead = torch.broadcast_shapes(*(t.shape[: t.ndim - own] for t, own in zip(tensors, own_dims, strict=True)))
    flat = (
        t.expand(*lead, *t.shape[t.ndim - own :]).reshape(-1, *t.shape[t.ndim - own :])
        for t, own in zip(tensors, own_dims, strict=True)
    )
    return tuple(result.unflatten(0, lead) for result in train_runs(*flat, sizes))


def _batched_shapes(parameters, moments, steps, points, count, draws, settings, sizes):
    lead = torch.broadcast_shapes(parameters.shape[:-2], settings.shape[:-1], steps.shape, draws.shape[:-2])
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
    sizes: list[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`train_runs` for one run: the same arguments without their first dimension."""
    tensors = (parameters, moments, steps, points, count, draws, settings)
    return tuple(result[0] for result in train_runs(*(tensor[None] for tensor in tensors), sizes))
