"""Training the generators on the history of a round: the loss with its gradient, Adam, epochs.

    loss = a_c [ MSE(Gb(G(l)), l) + MSE(G(Gb(w)), w) ] + a_o MSE(G(l), mean of the winners)

for winners w and losers l. G moves losers to winners, Gb back (Jiang et al., arXiv 2605.29295,
section 2.2). One epoch is one full-batch step on all winners and as many losers, drawn
independently. The loop is one operator, so that `torch.compile` does not unroll epochs and `vmap`
trains the generators of many runs together.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
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
from evox_evogm.algorithms.vmap_operator import vmap_operator

# So few that their weights, gradients and moments stay in the cache (benchmarks/results/step.md).
RUNS_AT_ONCE_ON_CPU = 2


class Pass(NamedTuple):
    """What B rows leave in the layers on their way through the generators.

    inputs: per layer an `(M, B, d_in)` tensor.
    deltas: per layer an `(M, B, d_out)` tensor, the gradient by what weight and bias give.
    """

    inputs: list[torch.Tensor]
    deltas: list[torch.Tensor]


class LossGradient:
    """The gradient of the loss of K runs by the weights of their generators.

    The generators are G, Gb, G, Gb, ... (M = 2 K), or G, G, ... without cycles (M = K). Rows go
    through every generator and back through the other one. What both ways leave in a layer is one
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
        """Allocate the tensors of the passes.

        :param layers: of the M generators.
        :param gradients: of the same form; every call overwrites them.
        :param target: a `(K, 1, 1, n)` tensor, the mean of the winners.
        :param cycle_scale: a `(K, 1, B, 1)` tensor, what the square of an error of one coordinate
            counts in the cycle loss.
        :param opt_scale: the same for the optimisation loss.
        :param batch: B, rows of a generator.
        :param dual: whether the generators come in pairs.
        """
        self.layers, self.gradients, self.dual = layers, gradients, dual
        self.target = target
        self.twice_cycle_scale, self.twice_opt_scale = 2 * cycle_scale, 2 * opt_scale
        rows = 2 * batch if dual else batch
        inputs, deltas = [], []
        for weight, _ in layers:
            networks, d_in, d_out = weight.shape
            inputs.append(weight.new_empty(networks, rows, d_in))
            deltas.append(weight.new_empty(networks, rows, d_out))
        self.deltas = deltas
        self.there = self._rows(inputs, slice(0, batch))
        self.back = self._rows(inputs, slice(batch, 2 * batch))
        self.transposed_weights = [weight.mT for weight, _ in layers]
        self.transposed_inputs = [tensor.mT for tensor in inputs]

    def _rows(self, inputs: list[torch.Tensor], rows: slice) -> Pass:
        """The views of inputs and deltas that hold some rows."""
        part = Pass([], [])
        for layer_inputs, layer_deltas in zip(inputs, self.deltas, strict=True):
            part.inputs.append(layer_inputs[:, rows])
            part.deltas.append(layer_deltas[:, rows])
        return part

    def __call__(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the gradient.

        :param points: a `(K, 2, B, n)` tensor of losers and winners, or without pairs a
            `(K, 1, B, n)` tensor of losers.
        :return: the `(K, 2, B, n)` errors of the cycles (zeros without pairs), and the
            `(K, 1, B, n)` distances from the target.
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
            back_gradient = torch.bmm(back.deltas[0], self.transposed_weights[0])
            moved_gradient = back_gradient.view(points.shape).flip(1)
            moved_gradient[:, :1].addcmul_(self.twice_opt_scale, miss)
        gradient = moved_gradient.view(by_network)
        backward(self.transposed_weights, there.inputs, moved, gradient, there.deltas)
        parameter_gradients(self.gradients, self.transposed_inputs, self.deltas)
        return error, miss


class AdamCall(NamedTuple):
    """Arguments of torch's Adam; every list has the same number of tensors."""

    parameters: list[torch.Tensor]
    gradients: list[torch.Tensor]
    first_moments: list[torch.Tensor]
    second_moments: list[torch.Tensor]
    steps: list[torch.Tensor]
    lr: float


class Adam:
    """torch's fused Adam (Kingma and Ba, 2015; its defaults) for the generators of K runs.

    One call serves all runs if they have the same learning rate and step. Otherwise each run has
    its own: a call of torch's takes one learning rate.
    """

    def __init__(
        self,
        tensors: Sequence[tuple[torch.Tensor, Layers]],
        lr: torch.Tensor,
        steps: torch.Tensor,
    ):
        """Prepare the calls.

        :param tensors: parameters, gradients, first and second moments, each with its layers.
        :param lr: a `(K,)` tensor.
        :param steps: a `(K,)` tensor, steps taken before.
        """
        settings = list(zip(lr.tolist(), steps.tolist(), strict=True))
        self.calls: list[AdamCall] = []
        if len(set(settings)) == 1:
            whole = [[vector] for vector, _ in tensors]
            self._add_call(whole, *settings[0], lr.device)
            return
        for run, (rate, step) in enumerate(settings):
            parts = [parts_of_run(layers, run, len(settings)) for _, layers in tensors]
            self._add_call(parts, rate, step, lr.device)

    def _add_call(
        self, tensors: list[list[torch.Tensor]], rate: float, step: float, device: torch.device
    ) -> None:
        """Add a call with one learning rate and step.

        :param tensors: parameters, gradients, first and second moments, as many of each.
        """
        steps = [torch.full((), step, dtype=torch.float32, device=device) for _ in tensors[0]]
        parameters, gradients, first_moments, second_moments = tensors
        call = AdamCall(parameters, gradients, first_moments, second_moments, steps, rate)
        self.calls.append(call)

    def step(self) -> None:
        """Change parameters and moments by one step."""
        for call in self.calls:
            adam(
                call.parameters,
                call.gradients,
                call.first_moments,
                call.second_moments,
                [],
                call.steps,
                fused=True,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=call.lr,
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )


def parts_of_run(layers: Layers, run: int, runs: int) -> list[torch.Tensor]:
    """The tensors of one run's generators, layer by layer, as views."""
    parts = []
    for weight, bias in layers:
        parts += [weight.chunk(runs)[run], bias.chunk(runs)[run]]
    return parts


def weights_of_winners(winners: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What each row of a history, the best first, weighs in the mean over a run's winners.

    :param winners: a `(K,)` tensor, how many they are.
    :return: a `(K, B)` tensor with B the largest of them, 0 beyond a run's own winners.
    """
    rows = torch.arange(int(winners.max()), device=winners.device)  # (B,)
    return (rows < winners[:, None]) / winners[:, None].to(dtype)


def train_together(
    parameters: torch.Tensor,
    moments: torch.Tensor,
    steps: torch.Tensor,
    points: torch.Tensor,
    count: torch.Tensor,
    draws: torch.Tensor,
    settings: torch.Tensor,
    *,
    sizes: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`train` for K runs that are all trained, and in one batch."""
    runs, networks, _ = parameters.shape
    dim = points.shape[2]
    lr, winner_ratio, cycle_weight, opt_weight = settings.unbind(1)

    winners = winner_count(count, winner_ratio).minimum(count)  # (K,)
    row_weights = weights_of_winners(winners, points.dtype)  # (K, B)
    rows = row_weights.shape[1]  # B
    winner_points = points[:, :rows]  # (K, B, n)
    target = (row_weights[..., None] * winner_points).sum(1)[:, None, None]  # (K, 1, 1, n)
    loser_draws = draws[:, :, :rows]
    loser_rows = draw_losers(loser_draws, winners[:, None, None], count[:, None, None])  # (K, E, B)

    # Weighs squares of errors so that their sum is the mean.
    mean = row_weights[:, None, :, None] / dim  # (K, 1, B, 1)
    cycle_scale = cycle_weight[:, None, None, None] * mean
    opt_scale = opt_weight[:, None, None, None] * mean

    vector, layers = layer_by_layer(parameters.flatten(0, 1), sizes)
    gradient, gradients = layer_by_layer(torch.empty_like(parameters).flatten(0, 1), sizes)
    first = layer_by_layer(moments[:, 0].flatten(0, 1), sizes)
    second = layer_by_layer(moments[:, 1].flatten(0, 1), sizes)
    optimizer = Adam([(vector, layers), (gradient, gradients), first, second], lr, steps)
    write_gradient = LossGradient(
        layers,
        gradients,
        target,
        cycle_scale,
        opt_scale,
        batch=rows,
        dual=networks == 2,
    )
    batch = winner_points[:, None].repeat(1, networks, 1, 1)  # (K, G, B, n)
    for epoch in range(draws.shape[1]):
        chosen = loser_rows[:, epoch, :, None].expand(-1, -1, dim)
        batch[:, 0] = points.gather(1, chosen)
        error, miss = write_gradient(batch)
        optimizer.step()

    cycle_loss = (mean * error**2).sum((1, 2, 3))
    opt_loss = (mean * miss**2).sum((1, 2, 3))
    by_run = (runs, networks)
    new_moments = [pack(first[1]).unflatten(0, by_run), pack(second[1]).unflatten(0, by_run)]
    return (
        pack(layers).unflatten(0, by_run),
        torch.stack(new_moments, 1),
        torch.stack([cycle_loss, opt_loss], 1),
    )


def _shapes(parameters, moments, *arguments):
    settings = arguments[4]
    losses = settings.new_empty(len(settings), 2)
    return torch.empty_like(parameters), torch.empty_like(moments), losses


@vmap_operator("evogm::train", own_dims=(2, 3, 0, 2, 0, 2, 1, 0), shapes=_shapes)
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
    """Train the generators of K runs for E epochs, or make fresh ones.

    As an operator it is called for one run, without K.

    :param parameters: a `(K, G, N)` tensor; G is 2 (G and Gb) or 1 (G alone).
    :param moments: a `(K, 2, G, N)` tensor, Adam's moments.
    :param steps: a `(K,)` tensor, Adam steps taken before; negative for fresh generators, which are
        not trained.
    :param points: a `(K, C, n)` tensor, the history with the best first.
    :param count: a `(K,)` tensor, rows in use.
    :param draws: a `(K, E, C)` tensor of uniform numbers that choose the losers.
    :param settings: a `(K, 4)` tensor: learning rate, winner ratio, a_c, a_o.
    :param seed: a `(K,)` tensor of whole numbers, of the fresh generators.
    :param sizes: layer sizes of a generator.
    :return: new parameters, new moments, and the `(K, 2)` cycle and optimisation losses of the last
        epoch, before weighting.
    """
    networks, dtype, device = parameters.shape[1], parameters.dtype, parameters.device
    new_parameters, new_moments = torch.empty_like(parameters), torch.empty_like(moments)
    losses = torch.empty_like(settings[:, :2])
    for run in (steps < 0).nonzero().flatten().tolist():
        new_parameters[run] = initial_parameters(sizes, networks, dtype, device, int(seed[run]))
        new_moments[run] = 0
        losses[run] = 0

    trained = (steps >= 0).nonzero().flatten()
    if len(trained) == 0:
        return new_parameters, new_moments, losses
    at_once = RUNS_AT_ONCE_ON_CPU if device.type == "cpu" else len(trained)
    for chosen in trained.split(at_once):
        tensors = (parameters, moments, steps, points, count, draws, settings)
        results = train_together(*[tensor[chosen] for tensor in tensors], sizes=sizes)
        new_parameters[chosen], new_moments[chosen], losses[chosen] = results
    return new_parameters, new_moments, losses
