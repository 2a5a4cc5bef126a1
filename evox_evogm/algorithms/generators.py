"""The generators of EvoGM: multilayer perceptrons n - hidden - n with ReLU, and tanh at the end.

The weights of a generator are one flat vector, so that Adam is a few operations on one tensor. M
generators are the rows of an (M, N) tensor, so that one batched matrix product serves all of them.
The backward pass is written out. It builds no autograd graph, and two passes through a generator
share one product for the gradient of its weights.

Source: Jiang et al., "EvoGM", ICML 2026, arXiv 2605.29295, section 2.2 and appendix B.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch

Layers = list[tuple[torch.Tensor, torch.Tensor]]  # weight and bias, layer by layer

# Named by their overloads: choosing one takes longer than the operation.
tanh_backward = torch.ops.aten.tanh_backward.grad_input
relu_backward = torch.ops.aten.threshold_backward.grad_input


def parameter_count(sizes: Sequence[int]) -> int:
    """N, the number of weights and biases of one generator.

    :param sizes: layer sizes (n, hidden..., n).
    """
    return sum((d_in + 1) * d_out for d_in, d_out in pairwise(sizes))


def initial_parameters(
    sizes: Sequence[int],
    count: int,
    dtype: torch.dtype,
    device: torch.device,
    seed: int | None = None,
) -> torch.Tensor:
    """Fresh generators, uniform within 1/sqrt(inputs of the layer) as in `torch.nn.Linear`.

    :param sizes: layer sizes (n, hidden..., n).
    :param count: M, how many generators.
    :param seed: of the random numbers; from torch's own generator if not given.
    :return: an `(M, N)` tensor.
    """
    source = None if seed is None else torch.Generator(device).manual_seed(seed)
    bounds = []
    for d_in, d_out in pairwise(sizes):
        bounds.append(torch.full(((d_in + 1) * d_out,), d_in**-0.5, dtype=torch.float32))
    bound = torch.cat(bounds).to(device, dtype)  # (N,)
    uniform = torch.rand(count, len(bound), dtype=dtype, device=device, generator=source)
    return (2 * uniform - 1) * bound


def unpack(parameters: torch.Tensor, sizes: Sequence[int]) -> Layers:
    """Views of (M, N) parameters: per layer a weight (M, d_in, d_out) and a bias (M, 1, d_out)."""
    layers, start = [], 0
    for d_in, d_out in pairwise(sizes):
        middle, end = start + d_in * d_out, start + (d_in + 1) * d_out
        weight = parameters[:, start:middle].unflatten(1, (d_in, d_out))
        layers.append((weight, parameters[:, None, middle:end]))
        start = end
    return layers


def layer_by_layer(parameters: torch.Tensor, sizes: Sequence[int]) -> tuple[torch.Tensor, Layers]:
    """Copy (M, N) parameters so that every layer is one tensor without gaps.

    Matrix products are fastest on such tensors.

    :param parameters: an `(M, N)` tensor.
    :param sizes: layer sizes (n, hidden..., n).
    :return: all numbers as one (M N,) vector, and the layers as views of it.
    """
    tensors = flat_list(unpack(parameters, sizes))
    vector = torch.cat([tensor.flatten() for tensor in tensors])  # (M N,)
    pieces = vector.split([tensor.numel() for tensor in tensors])
    views = []
    for piece, tensor in zip(pieces, tensors, strict=True):
        views.append(piece.view(tensor.shape))
    return vector, list(zip(views[::2], views[1::2], strict=True))


def flat_list(layers: Layers) -> list[torch.Tensor]:
    """Weights and biases of layers in one list."""
    tensors = []
    for weight, bias in layers:
        tensors += [weight, bias]
    return tensors


def pack(layers: Layers) -> torch.Tensor:
    """The (M, N) parameters of layers: `unpack` undone."""
    return torch.cat([tensor.flatten(1) for tensor in flat_list(layers)], 1)


def forward(layers: Layers, inputs: list[torch.Tensor]) -> torch.Tensor:
    """Send rows through M generators.

    :param inputs: per layer an (M, B, d_in) tensor. The first holds the rows; the others are
        overwritten.
    :return: the (M, B, n) output.
    """
    for index, (weight, bias) in enumerate(layers[:-1]):
        # ReLU. The product gets no name, so that the next layer can take its memory.
        torch.clamp_min(torch.baddbmm(bias, inputs[index], weight), 0, out=inputs[index + 1])
    weight, bias = layers[-1]
    return torch.baddbmm(bias, inputs[-1], weight).tanh_()


def backward(
    transposed: list[torch.Tensor],
    inputs: list[torch.Tensor],
    output: torch.Tensor,
    output_gradient: torch.Tensor,
    deltas: list[torch.Tensor],
) -> None:
    """Carry the gradient of the output back through the layers.

    :param transposed: per layer the (M, d_out, d_in) view of its weight.
    :param inputs: what `forward` left.
    :param output: what `forward` returned.
    :param output_gradient: an (M, B, n) tensor.
    :param deltas: per layer an (M, B, d_out) tensor, overwritten by the gradient with respect to
        what weight and bias give.
    """
    tanh_backward(output_gradient, output, grad_input=deltas[-1])
    for index in range(len(transposed) - 1, 0, -1):
        delta = torch.bmm(deltas[index], transposed[index])
        relu_backward(delta, inputs[index], 0, grad_input=deltas[index - 1])


def parameter_gradients(
    gradients: Layers, transposed: list[torch.Tensor], deltas: list[torch.Tensor]
) -> None:
    """Write the gradients of weights and biases.

    :param gradients: contiguous tensors of the form of `layers`, overwritten.
    :param transposed: per layer the (M, d_in, B) view of its inputs.
    :param deltas: per layer what `backward` wrote.
    """
    for (weight, bias), inputs, delta in zip(gradients, transposed, deltas, strict=True):
        torch.bmm(inputs, delta, out=weight)
        torch.sum(delta, 1, keepdim=True, out=bias)


def generate(parameters: torch.Tensor, sizes: Sequence[int], points: torch.Tensor) -> torch.Tensor:
    """Move points by one generator.

    :param parameters: the `(N,)` vector of a generator.
    :param sizes: its layer sizes (n, hidden..., n).
    :param points: a `(P, n)` tensor.
    :return: a `(P, n)` tensor inside [-1, 1].
    """
    *hidden, (weight, bias) = unpack(parameters[None], sizes)
    rows = points[None]
    for hidden_weight, hidden_bias in hidden:
        rows = torch.baddbmm(hidden_bias, rows, hidden_weight).relu()
    return torch.baddbmm(bias, rows, weight).tanh()[0]
