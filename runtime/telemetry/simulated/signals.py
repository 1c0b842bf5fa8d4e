"""What the machines of a simulated fleet would show: gauges that wander, counters that grow.

Each signal follows the load between its levels with a first-order autoregressive jitter. Engines'
pages are read less often than samples are taken, and say how old they are.

Does not know: clocks, frames, or what goes wrong on the way (`faults.py`).
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ....env.state.feature import FloatArray
from ..raw_signal import Kind
from ..signals import SIGNALS_BY_SCOPE, Scope, signal_index
from .levels import LEVELS
from .load import SimulatedLoad

Blocks = Mapping[Scope, NDArray[np.float32]]
"""By scope [servers, entities, signals]."""

# Time constant of the jitter: about that of a batch of requests.
_JITTER_S = 3.0
# Time constant with which temperatures and averages over a minute follow the load.
_SLOW_S = 30.0
_SLOW = ("temperature_celsius", "memory_temperature_celsius", "load_1min")


class _ScopeValues:
    """Values of all signals of one scope.

    Shapes: [S servers, E entities, N signals], N the last axis of all arrays here.
    """

    def __init__(self, scope: Scope, shape: tuple[int, int], rng: np.random.Generator) -> None:
        signals = SIGNALS_BY_SCOPE[scope]
        levels = [LEVELS[scope][signal.name] for signal in signals]
        self._rng = rng
        self._idle = np.array([level.idle for level in levels], dtype=np.float32)
        self._rise = np.array([level.full - level.idle for level in levels], dtype=np.float32)
        self._jitter = np.array([level.jitter for level in levels], dtype=np.float32) * self._rise
        self._moving = np.flatnonzero(self._jitter)
        self._slow = np.array([s.name in _SLOW for s in signals])
        self._counters = np.flatnonzero([s.kind is Kind.COUNTER for s in signals])
        # A gauge that is only ever 0 or 1, or counts requests.
        whole = [s.kind is Kind.GAUGE and s.unit in ("0 or 1", "requests") for s in signals]
        self._whole = np.flatnonzero(whole)
        self._low = np.array([s.low for s in signals], dtype=np.float32)
        # Just below: a float32 near a fold must not round up to it.
        self._high = np.array([s.high for s in signals], dtype=np.float32)
        self._folds = np.array([signals[c].high for c in self._counters])
        self._noise = rng.standard_normal((*shape, len(self._moving)), dtype=np.float32)
        self._slow_load = np.full(shape, np.nan)
        self._totals = rng.random((*shape, len(self._counters))) * self._folds / 4
        self.values = np.zeros((*shape, len(signals)), dtype=np.float32)

    def step(self, load: FloatArray, passed_s: float) -> None:
        """Move on by a span under a load [S, E]."""
        keep = np.float32(np.exp(-passed_s / _JITTER_S))
        self._noise *= keep
        fresh = self._rng.standard_normal(self._noise.shape, dtype=np.float32)
        fresh *= np.sqrt(1 - keep * keep)
        self._noise += fresh
        if np.isnan(self._slow_load[0, 0]):
            self._slow_load[:] = load
        self._slow_load += -np.expm1(-passed_s / _SLOW_S) * (load - self._slow_load)
        values = self.values
        np.multiply(load.astype(np.float32)[..., None], self._rise, out=values)
        if self._slow.any():
            slow_load = self._slow_load.astype(np.float32)[..., None]
            values[..., self._slow] = slow_load * self._rise[self._slow]
        values += self._idle
        values[..., self._moving] += self._noise * self._jitter[self._moving]
        rates = np.maximum(values[..., self._counters], 0.0)
        self._totals += rates * passed_s
        self._totals %= self._folds
        np.clip(values, self._low, self._high, out=values)
        values[..., self._whole] = np.round(values[..., self._whole])
        values[..., self._counters] = self._totals

    def reset(self, servers: NDArray[np.intp]) -> None:
        """Start the counters of some servers again at zero."""
        self._totals[servers] = 0.0


class SimulatedSignals:
    """Raw signals of all servers of a fleet.

    Shapes: `servers` are indices of servers; blocks as `Blocks`.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        rng: np.random.Generator,
        load: SimulatedLoad,
        page_period_s: float = 1.0,
    ) -> None:
        """Make the machines; `shape` is servers, GPUs and replicas a server."""
        num_servers, num_gpus, num_replicas = shape
        entities = {Scope.SERVER: 1, Scope.GPU: num_gpus, Scope.REPLICA: num_replicas}
        self._scopes = {s: _ScopeValues(s, (num_servers, n), rng) for s, n in entities.items()}
        self._load = load
        self._gpus_per_replica = num_gpus // num_replicas
        self._page_period_s = page_period_s
        self._page_at_s = rng.uniform(-page_period_s, 0.0, num_servers)
        self._page = np.zeros_like(self._scopes[Scope.REPLICA].values)
        self._page_age = signal_index(Scope.REPLICA, "page_age_s")
        self._is_first = True

    def step(self, at_s: float, passed_s: float) -> Blocks:
        """Move on by a span; the blocks are overwritten by the next step."""
        load = self._load.at(at_s, passed_s)
        loads = {
            Scope.SERVER: load.mean(axis=1, keepdims=True),
            Scope.GPU: np.repeat(load, self._gpus_per_replica, axis=1),
            Scope.REPLICA: load,
        }
        for scope, values in self._scopes.items():
            values.step(loads[scope], passed_s)
        self._read_pages(at_s)
        return {
            Scope.SERVER: self._scopes[Scope.SERVER].values,
            Scope.GPU: self._scopes[Scope.GPU].values,
            Scope.REPLICA: self._page,
        }

    def reset(self, servers: NDArray[np.intp]) -> None:
        """Start the counters of some servers again at zero: they were started again."""
        for values in self._scopes.values():
            values.reset(servers)

    def _read_pages(self, at_s: float) -> None:
        """Read the pages that are due; the others are only older."""
        is_due = at_s - self._page_at_s >= self._page_period_s
        if self._is_first:  # read at once, then by each server's own turn
            self._page[:] = self._scopes[Scope.REPLICA].values
            self._is_first = False
        self._page_at_s[is_due] = at_s
        self._page[is_due] = self._scopes[Scope.REPLICA].values[is_due]
        self._page[..., self._page_age] = (at_s - self._page_at_s)[:, None]
