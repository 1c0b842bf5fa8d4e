"""Compiled residual, ReLU and LayerNorm in one pass, and its gradients, node by node.

Shapes (T nodes, H hidden), float32: `hidden`, `taken`, `settled` [T, H]; `gain`, `bias` [H].

Does not know: modules.
Source: Ba, Kiros, Hinton 2016, "Layer normalization".
"""

import numpy as np

from .kernel_compiler import ZERO, compiled, index


@compiled
def settle(hidden, taken, gain, bias, epsilon, settled):
    """Write the LayerNorm of hidden + relu(taken)."""
    size = index(hidden.shape[1])
    for node in range(index(hidden.shape[0])):
        total = ZERO
        for i in range(size):
            value = hidden[node, i] + max(taken[node, i], ZERO)
            settled[node, i] = value
            total += value
        mean = total / np.float32(size)
        squares = ZERO
        for i in range(size):
            squares += (settled[node, i] - mean) * (settled[node, i] - mean)
        factor = np.float32(1.0) / np.sqrt(squares / np.float32(size) + np.float32(epsilon))
        for i in range(size):
            settled[node, i] = (settled[node, i] - mean) * factor * gain[i] + bias[i]


@compiled
def unsettle(gradient, hidden, taken, gain, epsilon, grad_hidden, grad_taken, grad_gain, grad_bias):
    """Write the gradients of `settle`."""
    size = index(hidden.shape[1])
    normal = np.empty(size, dtype=np.float32)
    for node in range(index(hidden.shape[0])):
        total = ZERO
        for i in range(size):
            normal[i] = hidden[node, i] + max(taken[node, i], ZERO)
            total += normal[i]
        mean = total / np.float32(size)
        squares = ZERO
        for i in range(size):
            normal[i] -= mean
            squares += normal[i] * normal[i]
        factor = np.float32(1.0) / np.sqrt(squares / np.float32(size) + np.float32(epsilon))
        slope, tilt = ZERO, ZERO
        for i in range(size):
            normal[i] *= factor
            grad = gradient[node, i] * gain[i]
            slope += grad
            tilt += grad * normal[i]
            grad_gain[i] += gradient[node, i] * normal[i]
            grad_bias[i] += gradient[node, i]
        slope /= np.float32(size)
        tilt /= np.float32(size)
        for i in range(size):
            grad = factor * (gradient[node, i] * gain[i] - slope - normal[i] * tilt)
            grad_hidden[node, i] = grad
            grad_taken[node, i] = grad if taken[node, i] > ZERO else ZERO
