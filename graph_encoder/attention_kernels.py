"""Compiled attention over the edges of one type, and its gradients, target by target.

What PyG does in passes over all edges, each written to memory, is done here while the edges of one
target are in cache. There is no padding, whatever the degrees.

Shapes (S used sources, T targets, E edges, H hidden), float32: `sent` [S, H], `carried` [E, H] or
[0, H] where edges have no attributes, `received` [T, H], `attention` [heads, H / heads], `weights`
and `scores` [E, heads], `taken` [T, H]; `order`, `sources` [E] and `starts` [T + 1] as in
`Neighbours`. Targets with a single neighbour have no scores: it gets all attention.

Does not know: modules, or which edge type it is.
"""

import numpy as np

from .kernel_compiler import ONE, ZERO, compiled, index
from .relation_attention import NEGATIVE_SLOPE

SLOPE = np.float32(NEGATIVE_SLOPE)


@compiled
def score(sent, carried, received, attention, order, sources, starts, scores):
    """Write how much each target wants what its edges send, less the most that it wants."""
    num_heads, size = index(attention.shape[0]), index(attention.shape[1])
    has_carried = carried.shape[0] > 0
    for target in range(index(received.shape[0])):
        begin, end = index(starts[target]), index(starts[target + index(1)])
        for head in range(num_heads):
            first = head * size
            most = np.float32(-np.inf)
            for place in range(begin, end):
                edge = index(order[place])
                source = index(sources[edge])
                total = ZERO
                if has_carried:
                    for c in range(size):
                        i = first + c
                        heard = sent[source, i] + carried[edge, i] + received[target, i]
                        total += attention[head, c] * max(heard, SLOPE * heard)
                else:
                    for c in range(size):
                        i = first + c
                        heard = sent[source, i] + received[target, i]
                        total += attention[head, c] * max(heard, SLOPE * heard)
                scores[edge, head] = total
                most = max(most, total)
            for place in range(begin, end):
                scores[index(order[place]), head] -= most


@compiled
def normalise(weights, order, starts):
    """Divide the weights of each target's edges by their sum."""
    for head in range(index(weights.shape[1])):
        for target in range(index(starts.shape[0] - 1)):
            begin, end = index(starts[target]), index(starts[target + index(1)])
            total = ZERO
            for place in range(begin, end):
                total += weights[index(order[place]), head]
            for place in range(begin, end):
                weights[index(order[place]), head] /= total


@compiled
def take(sent, carried, weights, order, sources, starts, taken):
    """Add the weighted sum of what its edges send to each target."""
    num_heads = index(weights.shape[1])
    size = index(taken.shape[1]) // num_heads
    has_carried = carried.shape[0] > 0
    for target in range(index(taken.shape[0])):
        for place in range(index(starts[target]), index(starts[target + index(1)])):
            edge = index(order[place])
            source = index(sources[edge])
            for head in range(num_heads):
                weight = weights[edge, head]
                first = head * size
                if has_carried:
                    for i in range(first, first + size):
                        taken[target, i] += weight * (sent[source, i] + carried[edge, i])
                else:
                    for i in range(first, first + size):
                        taken[target, i] += weight * sent[source, i]


@compiled
def take_all(sent, carried, order, sources, starts, taken):
    """Add all that its edges send to each target: `take` where every weight is 1."""
    size = index(taken.shape[1])
    has_carried = carried.shape[0] > 0
    for target in range(index(taken.shape[0])):
        for place in range(index(starts[target]), index(starts[target + index(1)])):
            edge = index(order[place])
            source = index(sources[edge])
            for i in range(size):
                taken[target, i] += sent[source, i]
            if has_carried:
                for i in range(size):
                    taken[target, i] += carried[edge, i]


@compiled
def give_all(gradient, targets, sources, grad_sent, grad_carried):
    """Write the gradients of `take_all`."""
    size = index(gradient.shape[1])
    has_carried = grad_carried.shape[0] > 0
    for edge in range(index(sources.shape[0])):
        source, target = index(sources[edge]), index(targets[edge])
        for i in range(size):
            grad_sent[source, i] += gradient[target, i]
        if has_carried:
            for i in range(size):
                grad_carried[edge, i] = gradient[target, i]


@compiled
def grade(gradient, sent, carried, weights, order, sources, starts, grad_scores):
    """Write the gradients of the scores."""
    num_heads = index(weights.shape[1])
    size = index(sent.shape[1]) // num_heads
    has_carried = carried.shape[0] > 0
    for target in range(index(gradient.shape[0])):
        begin, end = index(starts[target]), index(starts[target + index(1)])
        for head in range(num_heads):
            first = head * size
            mean = ZERO
            for place in range(begin, end):
                edge = index(order[place])
                source = index(sources[edge])
                worth = ZERO
                for i in range(first, first + size):
                    worth += gradient[target, i] * sent[source, i]
                if has_carried:
                    for i in range(first, first + size):
                        worth += gradient[target, i] * carried[edge, i]
                grad_scores[edge, head] = worth
                mean += weights[edge, head] * worth
            for place in range(begin, end):
                edge = index(order[place])
                grad_scores[edge, head] = weights[edge, head] * (grad_scores[edge, head] - mean)


@compiled
def give(
    gradient, sent, carried, received, attention, weights, grad_scores, order, sources, starts,
    grad_sent, grad_carried, grad_received, grad_attention,
):  # fmt: skip
    """Add the gradients of what is sent, carried, received and of the attention vector."""
    num_heads, size = index(attention.shape[0]), index(attention.shape[1])
    has_carried = carried.shape[0] > 0
    for target in range(index(gradient.shape[0])):
        for place in range(index(starts[target]), index(starts[target + index(1)])):
            edge = index(order[place])
            source = index(sources[edge])
            for head in range(num_heads):
                weight, grad = weights[edge, head], grad_scores[edge, head]
                for c in range(size):
                    i = head * size + c
                    heard = sent[source, i] + received[target, i]
                    if has_carried:
                        heard += carried[edge, i]
                    slope = ONE if heard > ZERO else SLOPE
                    grad_attention[head, c] += grad * slope * heard
                    grad_heard = grad * slope * attention[head, c]
                    grad_received[target, i] += grad_heard
                    grad_reached = weight * gradient[target, i] + grad_heard
                    grad_sent[source, i] += grad_reached
                    if has_carried:
                        grad_carried[edge, i] = grad_reached
