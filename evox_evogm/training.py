"""Training the generators on the history of a round: the loss with its gradient, Adam, and the loop of epochs.

    loss = a_c [ MSE(Gb(G(l)), l) + MSE(G(Gb(w)), w) ] + a_o MSE(G(l), mean of the winners)

for winners w and losers l; G moves losers to winners, Gb back (Jiang et al., arXiv 2605.29295, section 2.2). One epoch is
one full-batch step on all winners and as many losers, drawn independently. The loop is one operator, opaque to
`torch.compile` (so that epochs are not unrolled) and batched over the runs of a `vmap`.
"""

from collections.abc import Sequence

import torch
from evox.utils import register_vmap_op

from evox_evogm.archive import draw_losers, winner_count
from evox_evogm.generators import Layers, backward, forward, unpack

SCHEMA = (
    "(Tensor parameters, Tensor moments, Tensor steps, Tensor points, Tensor count, Tensor draws, Tensor settings, "
    "int[] sizes) -> (Tensor, Tensor, Tensor)"
)
BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's published values, torch.optim.Adam's defaults


def loss_gradient(
    layers: Layers,
    gradients: Layers,
    losers: torch.Tensor,
    winners: torch.Tensor,
    row_weights: torch.Tensor,
    target: torch.Tensor,
    cycle_weight: torch.Tensor,
    opt_weight: torch.Tensor,
) -> torch.Tensor:
    """Add the gradient of the loss of K runs to `gradients`, and return the two parts of the loss.

    :param layers: of M = 2 K generators G, Gb, G, Gb, ..., or of M = K generators G (no cycle loss).
    :param gradients: of the same form, to be added to.
    :param losers: a `(K, B, n)` tensor.
    :param winners: a `(K, B, n)` tensor.
    :param row_weights: a `(K, B)` tensor that sums to 1 per run; 0 leaves a row out.
    :param target: a `(K, n)` tensor, the mean of the winners.
    :param cycle_weight: a_c, a `(K,)` tensor.
    :param opt_weight: a_o, a `(K,)` tensor.
    :return: a `(K, 2)` tensor of the cycle loss and the optimisation loss, both before weighting.
    """
    runs, _, dim = losers.shape
    per_run = layers[0][0].shape[0] // runs
    row_weights, target = row_weights[:, None, :, None], target[:, None, None]
    cycle_weight, opt_weight = cycle_weight[:, None, None, None], opt_weight[:, None, None, None]
    inputs = torch.stack([losers, winners][:per_run], 1)  # (K, per_run, B, n)
    there = forward(layers, inputs.flatten(0, 1))
    moved = there[-1].unflatten(0, (runs, per_run))  # G(l), Gb(w)
    miss = moved[:, :1] - target
    opt_loss = (row_weights * miss**2).sum((1, 2, 3)) / dim
    cycle_loss = torch.zeros_like(opt_loss)
    moved_gradient = torch.zeros_like(moved)
    if per_run == 2:
        back = forward(layers, moved.flip(1).flatten(0, 1))
        error = back[-1].unflatten(0, (runs, 2)) - inputs.flip(1)  # G(Gb(w)) - w, Gb(G(l)) - l
        cycle_loss = (row_weights * error**2).sum((1, 2, 3)) / dim
        error_gradient = (cycle_weight * row_weights * error * (2 / dim)).flatten(0, 1)
        moved_gradient = backward(layers, gradients, back, error_gradient).unflatten(0, (runs, 2)).flip(1)
    moved_gradient = torch.cat([moved_gradient[:, :1] + opt_weight * row_weights * miss * (2 / dim), moved_gradient[:, 1:]], 1)
    backward(layers, gradients, there, moved_gradient.flatten(0, 1))
    return torch.stack([cycle_loss, opt_loss], 1)


def adam_step(
    parameters: torch.Tensor,
    gradient: torch.Tensor,
    moments: torch.Tensor,
    step: torch.Tensor,
    lr: torch.Tensor,
) -> None:
    """One step of Adam in place (Kingma and Ba, 2015), for M vectors at once.

    :param parameters: an `(M, N)` tensor, changed.
    :param gradient: an `(M, N)` tensor.
    :param moments: a `(2, M, N)` tensor of the first and second moments, changed.
    :param step: an `(M, 1)` tensor, 1 at the first step.
    :param lr: an `(M, 1)` tensor.
    """
    first, second = moments
    first.lerp_(gradient, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    scale = (1 - BETAS[1] ** step).sqrt()
    denominator = (second.sqrt() / scale).add_(EPSILON)
    parameters.sub_(lr / (1 - BETAS[0] ** step) * first / denominator)


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
    :return: new parameters, new moments, and the `(K, 2)` cycle and optimisation losses of the last epoch.
    """
    kept_parameters, kept_moments = parameters, moments
    active = steps >= 0
    losses = settings.new_zeros(len(parameters), 2)
    if not active.any():
        return parameters.clone(), moments.clone(), losses
    runs, per_run, width = parameters.shape
    lr, winner_ratio, cycle_weight, opt_weight = settings.unbind(1)
    winners = winner_count(count, winner_ratio).minimum(count)  # (K,)
    rows = torch.arange(int(winners.max()), device=points.device)  # (B,)
    row_weights = (rows < winners[:, None]) / winners[:, None].to(points.dtype)  # (K, B)
    winner_points = points[:, : len(rows)]  # (K, B, n)
    target = (row_weights[..., None] * winner_points).sum(1)  # (K, n)
    loser_rows = draw_losers(draws[:, :, : len(rows)], winners[:, None, None], count[:, None, None])  # (K, E, B)

    parameters = parameters.flatten(0, 1).clone()  # (M, N)
    moments = moments.transpose(0, 1).flatten(1, 2).clone()  # (2, M, N)
    gradient = torch.zeros_like(parameters)
    layers, gradients = unpack(parameters, sizes), unpack(gradient, sizes)
    lr, first_step = (x.repeat_interleave(per_run)[:, None] for x in (lr, steps.to(points.dtype) + 1))  # (M, 1)
    for epoch in range(draws.shape[1]):
        losers = points.gather(1, loser_rows[:, epoch, :, None].expand(-1, -1, points.shape[2]))  # (K, B, n)
        gradient.zero_()
        losses = loss_gradient(layers, gradients, losers, winner_points, row_weights, target, cycle_weight, opt_weight)
        adam_step(parameters, gradient, moments, first_step + epoch, lr)
    parameters = parameters.view(runs, per_run, width)
    moments = moments.view(2, runs, per_run, width).transpose(0, 1)
    trained = active[:, None, None]
    return (
        torch.where(trained, parameters, kept_parameters),
        torch.where(trained[..., None], moments, kept_moments),
        torch.where(active[:, None], losses, 0.0),
    )


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
