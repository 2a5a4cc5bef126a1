"""Operators of many runs: opaque to `torch.compile`, and batched over the runs of a `vmap`.

An operator is written once, as a function of K runs whose tensors have K as their first dimension.
The decorator derives the rest: its schema from the type hints, the call for one run, and the calls
under `vmap`, which adds further dimensions in front of those of a run.
"""

from collections.abc import Callable, Sequence
from functools import wraps

import torch
from evox.utils import register_vmap_op

MAX_VMAP_LEVEL = 2  # the runs of a workflow, and those inside one evaluation of hyper-parameters


def flatten_lead(
    tensors: Sequence[torch.Tensor], own_dims: Sequence[int]
) -> tuple[torch.Size, list[torch.Tensor]]:
    """Bring tensors to one set of leading dimensions, and these to one dimension.

    :param own_dims: how many dimensions each tensor has without the leading ones.
    :return: the leading dimensions, and the tensors of K = their product runs.
    """
    leads = []
    for tensor, own in zip(tensors, own_dims, strict=True):
        leads.append(tensor.shape[: tensor.ndim - own])
    lead = torch.broadcast_shapes(*leads)
    flat = []
    for tensor, own in zip(tensors, own_dims, strict=True):
        own_shape = tensor.shape[tensor.ndim - own :]
        flat.append(tensor.expand(*lead, *own_shape).reshape(lead.numel(), *own_shape))
    return lead, flat


def vmap_operator(name: str, *, own_dims: Sequence[int], shapes: Callable) -> Callable:
    """Make an operator for one run out of a function of K runs.

    :param name: of the operator, `namespace::name`.
    :param own_dims: how many dimensions each tensor argument has in one run. Tensors come first.
    :param shapes: a function of the same arguments that returns empty tensors of the results'
        shapes.
    :return: a decorator. The operator takes the tensors of one run, without K, and returns the
        same.
    """
    count = len(own_dims)

    def decorate(run_many: Callable) -> Callable:
        def call_one(function: Callable, *arguments):
            tensors = [tensor[None] for tensor in arguments[:count]]
            results = function(*tensors, *arguments[count:])
            if isinstance(results, torch.Tensor):
                return results[0]
            return tuple(result[0] for result in results)

        def call_batch(function: Callable, *arguments):
            lead, tensors = flatten_lead(arguments[:count], own_dims)
            results = function(*tensors, *arguments[count:])
            if isinstance(results, torch.Tensor):
                return results.unflatten(0, lead)
            return tuple(result.unflatten(0, lead) for result in results)

        schema = torch.library.infer_schema(run_many, mutates_args=())
        results = schema.split("->")[1].count("Tensor")
        operator = register_vmap_op(
            name=name,
            schema=schema,
            fake_fn=lambda *arguments: call_one(shapes, *arguments),
            vmap_fn=lambda *arguments: call_batch(run_many, *arguments),
            fake_vmap_fn=lambda *arguments: call_batch(shapes, *arguments),
            vmap_out_dims=0 if results == 1 else (0,) * results,
            max_vmap_level=MAX_VMAP_LEVEL,
        )(wraps(run_many)(lambda *arguments: call_one(run_many, *arguments)))
        operator.run_many = run_many
        return operator

    return decorate
