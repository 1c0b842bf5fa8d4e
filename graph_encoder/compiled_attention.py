"""Attention by compiled kernels, with gradients: the quickest way on a CPU, to train and to serve.

Does not know: what the kernels do inside (`attention_kernels.py`), or other devices than the CPU.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import attention_kernels as kernels
from . import norm_kernels
from .backend import Backend
from .neighbours import Neighbours
from .relation_attention import RelationAttention


def _attend(
    relation: RelationAttention,
    nodes: tuple[Tensor, Tensor],
    neighbours: Neighbours,
    attributes: Tensor,
    taken: Tensor | None,
) -> Tensor:
    if relation.is_single:
        neighbours.check_single()
    source, target = nodes
    used = neighbours.used_sources
    sent = relation.send(source if used is None else source[used])
    if relation.carry is None:
        carried = sent.new_empty(0, sent.shape[1])
    else:
        carried = relation.carry(attributes)
    if taken is None:
        taken = sent.new_zeros(neighbours.num_targets, sent.shape[1])
    result: Tensor
    if neighbours.is_single:
        result = _TakeAll.apply(taken, sent, carried, neighbours)  # type: ignore[no-untyped-call]
    else:
        received = relation.receive(target)
        given = (taken, sent, carried, received, relation.attention, neighbours)
        result = _Attend.apply(*given)  # type: ignore[no-untyped-call]
    return result


def _settle(norm: nn.LayerNorm, hidden: Tensor, taken: Tensor) -> Tensor:
    given = (hidden, taken, norm.weight, norm.bias, norm.eps)
    settled: Tensor = _Settle.apply(*given)  # type: ignore[no-untyped-call]
    return settled


class _TakeAll(torch.autograd.Function):
    """Targets with one neighbour at most."""

    @staticmethod
    def forward(
        ctx: Any, taken: Tensor, sent: Tensor, carried: Tensor, neighbours: Neighbours
    ) -> Tensor:
        ctx.mark_dirty(taken)
        ctx.neighbours, ctx.shapes = neighbours, (sent.shape, carried.shape)
        kernels.take_all(*_arrays(sent, carried), *neighbours.arrays, taken.numpy())
        return taken

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradient.contiguous()
        grad_sent, grad_carried = (gradient.new_zeros(shape) for shape in ctx.shapes)
        _, sources, _ = ctx.neighbours.arrays
        targets = ctx.neighbours.targets.numpy()
        kernels.give_all(
            gradient.numpy(), targets, sources, grad_sent.numpy(), grad_carried.numpy()
        )
        return gradient, grad_sent, grad_carried, None


class _Attend(torch.autograd.Function):
    """Targets with any number of neighbours."""

    @staticmethod
    def forward(
        ctx: Any,
        taken: Tensor,
        sent: Tensor,
        carried: Tensor,
        received: Tensor,
        attention: Tensor,
        neighbours: Neighbours,
    ) -> Tensor:
        ctx.mark_dirty(taken)
        given = _arrays(sent, carried, received, attention)
        weights = np.empty((neighbours.num_edges, attention.shape[0]), dtype=np.float32)
        kernels.score(*given, *neighbours.arrays, weights)
        np.exp(weights, out=weights)
        order, _, starts = neighbours.arrays
        kernels.normalise(weights, order, starts)
        kernels.take(*given[:2], weights, *neighbours.arrays, taken.numpy())
        ctx.save_for_backward(sent, carried, received, attention)
        ctx.neighbours, ctx.weights = neighbours, weights
        return taken

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradient.contiguous()
        given, places = _arrays(*ctx.saved_tensors), ctx.neighbours.arrays
        grad_scores = np.empty_like(ctx.weights)
        kernels.grade(gradient.numpy(), *given[:2], ctx.weights, *places, grad_scores)
        grads = tuple(torch.zeros_like(tensor) for tensor in ctx.saved_tensors)
        kernels.give(gradient.numpy(), *given, ctx.weights, grad_scores, *places, *_arrays(*grads))
        return gradient, *grads, None


class _Settle(torch.autograd.Function):
    """Residual, ReLU and LayerNorm at once."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, taken: Tensor, gain: Tensor, bias: Tensor, epsilon: float
    ) -> Tensor:
        ctx.save_for_backward(hidden, taken, gain)
        ctx.epsilon = epsilon
        settled = torch.empty_like(taken)
        arrays = _arrays(hidden, taken, gain, bias)
        norm_kernels.settle(*arrays, epsilon, settled.numpy())
        return settled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, taken, gain = ctx.saved_tensors
        grad_hidden, grad_taken = torch.empty_like(taken), torch.empty_like(taken)
        grad_gain, grad_bias = torch.zeros_like(gain), torch.zeros_like(gain)
        grads = (grad_hidden, grad_taken, grad_gain, grad_bias)
        arrays = _arrays(gradient, hidden, taken, gain)
        norm_kernels.unsettle(*arrays, ctx.epsilon, *_arrays(*grads))
        return *grads, None


def _arrays(*tensors: Tensor) -> tuple[NDArray[np.float32], ...]:
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)


KERNELS = Backend("kernels", _attend, _settle)
"""Compiled kernels; on a CPU alone."""
