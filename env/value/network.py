"""The value network: weights, where they are kept, and how they are evaluated without torch.

Two hidden layers of rectified units over the features of one candidate, shared by all replicas, so
that the size of the fleet is free. It corrects the closed form that stands among its features: with
weights of zero the worth is that closed form.

Does not know: how features are made (`features.py`), or how weights are trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..compiled import compiled
from .features import (
    FEATURE_NAMES,
    NUM_FEATURES,
    OWN_MET,
    RUN_DOUBT,
    RUN_DOUBT_WITH,
    RUN_LOSS,
    WAIT_LOSS,
)

HIDDEN_SIZES = (32, 16)
"""Units of the hidden layers."""
NUM_OUTPUTS = 2
"""Corrections of the own chance, and of what the others lose."""
_FIRST, _SECOND = HIDDEN_SIZES
SHAPES: Mapping[str, tuple[int, ...]] = {
    "first.weight": (_FIRST, NUM_FEATURES),
    "first.bias": (_FIRST,),
    "second.weight": (_SECOND, _FIRST),
    "second.bias": (_SECOND,),
    "last.weight": (NUM_OUTPUTS, _SECOND),
    "last.bias": (NUM_OUTPUTS,),
}
"""Tensors of a network in the order in which they stand, transposed, in the flat weights."""
NUM_WEIGHTS = sum(int(np.prod(shape)) for shape in SHAPES.values())
_SECOND_AT = (NUM_FEATURES + 1) * _FIRST
_LAST_AT = _SECOND_AT + (_FIRST + 1) * _SECOND
_LAST_BIAS = _LAST_AT + NUM_OUTPUTS * _SECOND
NUM_SCRATCH = NUM_FEATURES + _FIRST + _SECOND

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class ValueNetwork:
    """Weights of a value network.

    Shapes: `weights` float32 [NUM_WEIGHTS].

    Raises:
        ValueError: the weights have another shape, or are not finite.
    """

    weights: FloatArray

    def __post_init__(self) -> None:
        if self.weights.shape != (NUM_WEIGHTS,) or self.weights.dtype != np.float32:
            msg = (
                f"weights of a value network must be float32 [{NUM_WEIGHTS}], "
                f"got {self.weights.dtype} {list(self.weights.shape)}"
            )
            raise ValueError(msg)
        if not np.isfinite(self.weights).all():
            place = int(np.argmin(np.isfinite(self.weights)))
            msg = f"weights of a value network must be finite, got {self.weights[place]} at {place}"
            raise ValueError(msg)

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, FloatArray]) -> "ValueNetwork":
        """Make a network from its tensors by name.

        Raises:
            ValueError: a tensor is missing, unknown, or has another shape than `SHAPES` says.
        """
        if tensors.keys() != SHAPES.keys():
            names = ", ".join(sorted(tensors.keys() ^ SHAPES.keys()))
            msg = (
                f"a value network has the tensors {', '.join(SHAPES)}; missing or unknown: {names}"
            )
            raise ValueError(msg)
        for name, shape in SHAPES.items():
            if tensors[name].shape != shape:
                found = list(tensors[name].shape)
                msg = f"tensor '{name}' must have shape {list(shape)}, got {found}"
                raise ValueError(msg)
        flat = [np.asarray(tensors[name], np.float32).T.ravel() for name in SHAPES]
        return cls(np.concatenate(flat))

    @property
    def tensors(self) -> dict[str, FloatArray]:
        """The weights by name."""
        found, start = {}, 0
        for name, shape in SHAPES.items():
            size = int(np.prod(shape))
            found[name] = self.weights[start : start + size].reshape(shape[::-1]).T.copy()
            start += size
        return found

    def worths(self, features: FloatArray) -> FloatArray:
        """Return (own chance, what the others gain) of candidates, over the request's weight.

        Shapes: [N, NUM_FEATURES] -> [N, 2].
        """
        tensors, hidden = self.tensors, features
        for layer in ("first", "second"):
            sums = hidden @ tensors[f"{layer}.weight"].T + tensors[f"{layer}.bias"]
            hidden = np.maximum(sums, np.float32(0.0))
        corrections = hidden @ tensors["last.weight"].T + tensors["last.bias"]
        own = np.clip(features[:, OWN_MET] + corrections[:, 0], 0.0, 1.0)
        others = features[:, RUN_LOSS] + features[:, WAIT_LOSS] + corrections[:, 1]
        return np.stack([own, others], axis=1)


def closed_form() -> ValueNetwork:
    """Return the network that corrects nothing."""
    return ValueNetwork(np.zeros(NUM_WEIGHTS, np.float32))


@compiled
def _layer(weights, at, scratch, in_at, sizes):
    """Fill the outputs, which follow the inputs in `scratch`, with their rectified sums.

    The weights are [inputs, outputs], so that the inner loop runs over neighbours in memory.
    """
    num_inputs, num_outputs = sizes
    out_at = in_at + num_inputs
    for i in range(num_outputs):
        scratch[out_at + i] = weights[at + num_inputs * num_outputs + i]
    for j in range(num_inputs):
        value, row = scratch[in_at + j], at + j * num_outputs
        if value != np.float32(0.0):
            for i in range(num_outputs):
                scratch[out_at + i] += value * weights[row + i]
    for i in range(num_outputs):
        scratch[out_at + i] = max(scratch[out_at + i], np.float32(0.0))


@compiled
def evaluate(weights, scratch, loss_weight, doubt_weight):
    """Return (own chance, what the others gain) over the request's weight.

    The two weights are those of the closed form's loss of others, and of the doubt that comes.

    Shapes: `weights` float32 [NUM_WEIGHTS]; `scratch` float32 [NUM_SCRATCH], the features first.
    """
    _layer(weights, 0, scratch, 0, (NUM_FEATURES, _FIRST))
    _layer(weights, _SECOND_AT, scratch, NUM_FEATURES, (_FIRST, _SECOND))
    own, others = weights[_LAST_BIAS], weights[_LAST_BIAS + 1]
    for j in range(_SECOND):
        unit = scratch[NUM_FEATURES + _FIRST + j]
        own += weights[_LAST_AT + NUM_OUTPUTS * j] * unit
        others += weights[_LAST_AT + NUM_OUTPUTS * j + 1] * unit
    own = min(np.float32(1.0), max(np.float32(0.0), scratch[OWN_MET] + own))
    others += loss_weight * (scratch[RUN_LOSS] + scratch[WAIT_LOSS])
    return own, others - doubt_weight * (scratch[RUN_DOUBT_WITH] - scratch[RUN_DOUBT])


__all__ = [
    "FEATURE_NAMES",
    "HIDDEN_SIZES",
    "NUM_OUTPUTS",
    "NUM_SCRATCH",
    "NUM_WEIGHTS",
    "SHAPES",
    "ValueNetwork",
    "closed_form",
    "evaluate",
]
