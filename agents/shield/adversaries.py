"""Policies that do harm, to try the shield on: random, worst, broken, frozen, late, raising.

Does not know: the shield.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...env.knobs import (
    ANALYTIC_SCORER_KNOBS,
    BIAS_LIMIT,
    HIGH_VALUES,
    KNOB_INDEX,
    LOW_VALUES,
    Knobs,
)
from ...env.state.cluster_state import ClusterState
from ...env.state.feature import Node

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Demand:
    """What an adversary asks for; nothing in it has been checked."""

    values: FloatArray
    replica_bias: FloatArray


Ask = Callable[[np.random.Generator, int], Demand]


def _random(rng: np.random.Generator, num_replicas: int) -> Demand:
    """Anything within the bounds of every knob, movable or not."""
    bias = rng.uniform(-BIAS_LIMIT, BIAS_LIMIT, num_replicas)
    return Demand(rng.uniform(LOW_VALUES, HIGH_VALUES), bias)


def _worst(rng: np.random.Generator, num_replicas: int) -> Demand:
    """Refuse nearly all, send the rest to one replica, and starve its batches."""
    values = ANALYTIC_SCORER_KNOBS.values.copy()
    for name in ("shed_interactive", "shed_batch", "batch_tokens_scale", "max_num_seqs_frac"):
        values[KNOB_INDEX[name]] = LOW_VALUES[KNOB_INDEX[name]]
    bias = np.full(num_replicas, BIAS_LIMIT)
    bias[0] = -BIAS_LIMIT
    return Demand(values, bias)


def _nan(rng: np.random.Generator, num_replicas: int) -> Demand:
    return Demand(np.full(LOW_VALUES.size, np.nan), np.full(num_replicas, np.nan))


def _huge(rng: np.random.Generator, num_replicas: int) -> Demand:
    signs = rng.choice([-1.0, 1.0], LOW_VALUES.size)
    return Demand(1e30 * signs, 1e30 * rng.choice([-1.0, 1.0], num_replicas))


def _wrong_shape(rng: np.random.Generator, num_replicas: int) -> Demand:
    return Demand(np.zeros(3), np.zeros(num_replicas + 7))


def _raising(rng: np.random.Generator, num_replicas: int) -> Demand:
    msg = "the policy's process has died"
    raise RuntimeError(msg)


ADVERSARIES: dict[str, Ask] = {
    "random": _random,
    "worst": _worst,
    "nan": _nan,
    "huge": _huge,
    "frozen": _random,
    "late": _worst,
    "wrong-shape": _wrong_shape,
    "raising": _raising,
}
"""What each asks for, by name."""

LATE_S = 10.0
"""How late the late one answers."""


@dataclass(slots=True)
class Adversary:
    """One of `ADVERSARIES` as a policy, for a guarded one; a bare fleet would not survive it."""

    kind: str
    seed: int = 0
    is_constant: bool = False
    _rng: np.random.Generator = field(default_factory=np.random.default_rng)
    _last: Demand | None = None

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"adversary-{self.kind}"

    @property
    def latency_s(self) -> float:
        """How long it takes to answer."""
        return LATE_S if self.kind == "late" else 0.0

    def begin(self) -> Knobs:
        """Forget everything; begin as the analytic scorer."""
        self._rng, self._last = np.random.default_rng(self.seed), None
        return ANALYTIC_SCORER_KNOBS

    def act(self, state: ClusterState) -> Knobs:
        """Return what it asks for, in the place of knobs."""
        return self.demand(state.age_s[Node.REPLICA].size)  # type: ignore[return-value]

    def demand(self, num_replicas: int) -> Demand:
        """Return what it asks for a fleet of so many replicas."""
        if self.kind == "frozen" and self._last is not None:
            return self._last
        self._last = ADVERSARIES[self.kind](self._rng, num_replicas)
        return self._last
