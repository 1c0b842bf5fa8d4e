"""Latency coefficients that a scheduler believes in, where they are not those of its fleet.

A calibration is off in its own way for each kind of GPU: what computes by one factor, what reads
memory by another. The scheduler then sees the coefficients times those factors, and the fleet
goes on as the cluster's own coefficients say.

Engines' measured iteration times tell a scheduler the overall error: `split_reality` puts the part
of it that is common to all terms, at a usual batch, where hidden slow-downs are, so that the
scraped ratio of measured to believed times carries it like those; only the rest, how the error
differs between computing and reading, stays in the coefficients.

Does not know: why a calibration is off, or who schedules.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from .cluster import ClusterSpec
from .hardware import GPUS, unknown_name_message
from .latency import LATENCY_DTYPE, iteration_time_s

_COMPUTE = (
    *("token_s", "gemm_token_s", "head_seq_s", "expert_token_s"),
    *("prefill_attention_s", "window_attention_s", "prefill_position_s"),
)
_MEMORY = (
    *("weight_s", "gemm_read_s", "gemm_token_read_s", "head_read_s", "expert_s"),
    *("decode_context_s", "window_context_s", "activation_token_s"),
)
_TIMES = tuple(name for name in LATENCY_DTYPE.names or () if name.endswith("_s"))
# Batches whose times say how far a belief is off overall: prefill tokens, where they begin,
# decoding sequences, their context tokens. One of each is a busy second of a chat replica.
_USUAL_BATCHES = ((256.0, 0.0, 32.0, 48_000.0), (0.0, 0.0, 32.0, 48_000.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """How far the believed coefficients of one kind of GPU are off.

    Raises:
        ValueError: there is no such GPU, or a factor is not above 0.
    """

    gpu: str
    """Name in `hardware.GPUS`."""
    compute_factor: float = 1.0
    """Believed over true time of what computes."""
    memory_factor: float = 1.0
    """Believed over true time of what reads memory."""

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            raise ValueError(unknown_name_message("GPU", self.gpu, GPUS))
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if not 0.0 < value < np.inf:
                msg = f"{field.name} must be above 0 and finite, got {value}"
                raise ValueError(msg)


def believed_coefficients(
    cluster: ClusterSpec, actual: np.ndarray, beliefs: Sequence[Belief]
) -> np.ndarray:
    """Return the coefficients that the scheduler believes, a copy.

    Shapes: LATENCY_DTYPE [R].
    """
    by_gpu = {belief.gpu: belief for belief in beliefs}
    believed = actual.copy()
    if not by_gpu:
        return believed
    for i, replica in enumerate(cluster.replicas):
        belief = by_gpu.get(cluster.server_of(replica).gpu)
        if belief is not None:
            _scale(believed[i : i + 1], _COMPUTE, belief.compute_factor)
            _scale(believed[i : i + 1], _MEMORY, belief.memory_factor)
    return believed


def split_reality(actual: np.ndarray, believed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coefficients and factors on iteration time whose product is the actual time.

    A replica's factor is its actual over its believed time at usual batches, 1 where they agree.

    Shapes: LATENCY_DTYPE [R] in and out, factors float64 [R].
    """
    rest, factors = actual.copy(), np.ones(actual.size)
    # Replicas of one kind have the same bytes.
    known: dict[bytes, float] = {}
    for i in range(actual.size):
        key = actual[i].tobytes() + believed[i].tobytes()
        if key not in known:
            is_right = actual[i].tobytes() == believed[i].tobytes()
            ratio = 1.0 if is_right else _usual_time_s(actual[i]) / _usual_time_s(believed[i])
            known[key] = ratio
        factors[i] = known[key]
    is_off = factors != 1.0
    for name in _TIMES:
        column = rest[name]
        column[is_off] /= factors[is_off].reshape(-1, *[1] * (column.ndim - 1))
    return rest, factors


def _usual_time_s(coefficients: np.ndarray) -> float:
    record = np.array([coefficients]).view(np.recarray)[0]
    return float(sum(iteration_time_s(record, *batch) for batch in _USUAL_BATCHES))


def _scale(coefficients: np.ndarray, names: Sequence[str], factor: float) -> None:
    for name in names:
        coefficients[name] *= factor
