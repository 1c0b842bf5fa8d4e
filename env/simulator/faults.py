"""Hidden trouble, drawn before a run from a seed: slow-downs that come and go, and crashes.

A slow-down hits one replica (a noisy neighbour, a throttled GPU) or a whole server (a hot rack, a
degraded link); factors of overlapping ones multiply. A crashed engine loses its batch and its
cache and comes back after a cold restart.

Does not know: how replicas react. Schedulers never see these tables.
"""

from dataclasses import dataclass

import numpy as np

from .layout import CRASH, EVENT_DTYPE, RESTART, SLOWDOWN_DTYPE


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultConfig:
    """Rates and sizes of hidden trouble."""

    replica_slowdowns_per_hour: float = 0.0
    """Per replica."""
    server_slowdowns_per_hour: float = 0.0
    """Per server, hitting all its replicas."""
    slowdown_factor: tuple[float, float] = (1.3, 2.2)
    """Range of the factor on iteration time."""
    slowdown_span_s: tuple[float, float] = (15.0, 60.0)
    """Range of a slow-down's length."""
    crashes_per_hour: float = 0.0
    """Per replica."""
    restart_span_s: tuple[float, float] = (30.0, 120.0)
    """Range of the time from crash to ready."""

    def __post_init__(self) -> None:
        for name in ("replica_slowdowns_per_hour", "server_slowdowns_per_hour", "crashes_per_hour"):
            if not getattr(self, name) >= 0:
                msg = f"{name} must be at least 0, got {getattr(self, name)}"
                raise ValueError(msg)
        for name in ("slowdown_factor", "slowdown_span_s", "restart_span_s"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                msg = f"{name} must be a range (low, high) above 0, got {(low, high)}"
                raise ValueError(msg)


def _draw_spans(
    rng: np.random.Generator, per_hour: float, horizon_s: float, config: FaultConfig
) -> list[tuple[float, float, float]]:
    """Return (start, end, factor) of the slow-downs of one thing."""
    count = rng.poisson(per_hour * horizon_s / 3600.0)
    starts = rng.uniform(0.0, horizon_s, count)
    ends = starts + rng.uniform(*config.slowdown_span_s, count)
    return list(zip(starts, ends, rng.uniform(*config.slowdown_factor, count), strict=True))


def _steps(spans: list[tuple[float, float, float]]) -> list[tuple[float, float]]:
    """Turn overlapping spans into (moment, factor from then on)."""
    moments = sorted({edge for start, end, _ in spans for edge in (start, end)})
    return [
        (at_s, float(np.prod([f for start, end, f in spans if start <= at_s < end])))
        for at_s in moments
    ]


def draw_slowdowns(
    config: FaultConfig, server_of_replica: np.ndarray, horizon_s: float, seed: int
) -> np.ndarray:
    """Return each replica's slow-down changes, SLOWDOWN_DTYPE [R, K], padded with infinity."""
    rng = np.random.default_rng([seed, 1])
    servers = {
        server: _draw_spans(rng, config.server_slowdowns_per_hour, horizon_s, config)
        for server in range(int(server_of_replica.max()) + 1)
    }
    steps = [
        _steps(
            servers[int(server)]
            + _draw_spans(rng, config.replica_slowdowns_per_hour, horizon_s, config)
        )
        for server in server_of_replica
    ]
    table = np.zeros((len(steps), max(map(len, steps)) + 1), dtype=SLOWDOWN_DTYPE)
    table["at_s"] = np.inf
    table["factor"] = 1.0
    for row, changes in zip(table, steps, strict=True):
        row[: len(changes)] = np.array(changes, dtype=SLOWDOWN_DTYPE)
    return table


def draw_crashes(config: FaultConfig, num_replicas: int, horizon_s: float, seed: int) -> np.ndarray:
    """Return crashes and restarts in order of time, EVENT_DTYPE [K]; none overlap on a replica."""
    rng = np.random.default_rng([seed, 2])
    events: list[tuple[float, int, int, float]] = []
    for replica in range(num_replicas):
        up_from_s = 0.0
        count = rng.poisson(config.crashes_per_hour * horizon_s / 3600.0)
        starts = np.sort(rng.uniform(0.0, horizon_s, count))
        for at_s, span_s in zip(starts, rng.uniform(*config.restart_span_s, count), strict=True):
            if at_s > up_from_s:
                up_from_s = at_s + span_s
                events += [(at_s, CRASH, replica, 0.0), (up_from_s, RESTART, replica, 0.0)]
    return np.array(sorted(events), dtype=EVENT_DTYPE)
