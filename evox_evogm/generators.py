"""The generators of EvoGM: multilayer perceptrons n - hidden - n with ReLU, and tanh at the end.

The weights of a generator are one flat vector, so that Adam is a few operations on one tensor, and M generators are the
rows of an (M, N) tensor, so that a pair of them, or the pairs of many runs, go through one batched matrix product.
The backward pass is written out: the training loop then needs no autograd graph and can be compiled and vmapped.

Source: Jiang et al., "EvoGM", ICML 2026, arXiv 2605.29295, section 2.2 and appendix B.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch

Layers = list[tuple[torch.Tensor, torch.Tensor]]


def parameter_count(sizes: Sequence[int]) -> int:
    """N, the number of weights and biases of one generator with these layer sizes."""
    return sum((d_in + 1) * d_out for d_in, d_out in pairwise(sizes))


def initial_parameters(sizes: Sequence[int], count: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Fresh generators, every number uniform within 1/sqrt(inputs of its layer) as in `torch.nn.Linear`.

    :param sizes: layer sizes (n, hidden..., n).
    :param count: M, how many generators.
    :return: an `(M, N)` tensor.
    """
    bounds = torch.cat([torch.full(((d_in + 1) * d_out,), d_in**-0.5) for d_in, d_out in pairwise(sizes)])  # (N,)
    return (2 * torch.rand(count, len(bounds), dtype=dtype, device=device) - 1) * bounds.to(device, dtype)


def unpack(parameters: torch.Tensor, sizes: Sequence[int]) -> Layers:
    """Views of (M, N) parameters: per layer the weight (M, d_in, d_out) and the bias (M, 1, d_out)."""
    layers, start = [], 0
    for d_in, d_out in pairwise(sizes):
        middle, end = start + d_in * d_out, start + (d_in + 1) * d_out
        weight = parameters[:, start:middle].unflatten(1, (d_in, d_out))
        layers.append((weight, parameters[:, None, middle:end]))
        start = end
    return layers


def forward(layers: Layers, inputs: torch.Tensor) -> list[torch.Tensor]:
    """All activations, the (M, B, n) inputs first and the tanh output last."""
    activations = [inputs]
    for weight, bias in layers[:-1]:
        activations.append(torch.baddbmm(bias, activations[-1], weight).relu_())
    weight, bias = layers[-1]
    activations.append(torch.baddbmm(bias, activations[-1], weight).tanh_())
    return activations


def backward(
    layers: Layers, gradients: Layers, activations: list[torch.Tensor], output_gradient: torch.Tensor
) -> torch.Tensor:
    """Add the gradient of the parameters to `gradients` (views of the same form as `layers`).

    :param activations: what `forward` returned.
    :param output_gradient: the (M, B, n) gradient with respect to the output.
    :return: the (M, B, n) gradient with respect to the inputs.
    """
    delta = output_gradient * (1 - activations[-1] ** 2)  # tanh' = 1 - tanh^2
    for index in reversed(range(len(layers))):
        weight_gradient, bias_gradient = gradients[index]
        weight_gradient += activations[index].mT @ delta
        bias_gradient += delta.sum(1, keepdim=True)
        delta = delta @ layers[index][0].mT
        if index > 0:
            delta = delta * (activations[index] > 0)  # ReLU'
    return delta


def generate(parameters: torch.Tensor, sizes: Sequence[int], points: torch.Tensor) -> torch.Tensor:
    """Move points by one generator.

    :param parameters: the `(N,)` vector of a generator.
    :param points: a `(P, n)` tensor.
    :return: a `(P, n)` tensor inside [-1, 1].
    """
    return forward(unpack(parameters[None], sizes), points[None])[-1][0]
