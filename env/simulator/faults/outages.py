"""Losses of replicas: crashes, and GPUs, servers, zones and spot capacity that go and come back.

Does not know: how a replica goes down.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..layout import CRASH, DIE, NOTICE, RESTART
from .config import FaultConfig, Outages
from .processes import FaultSpan, draw_bursts, draw_quantiles, merged
from .record import TroubleRecord

# Random streams of each kind.
_CRASH, _GPU, _SERVER, _ZONE, _SPOT = 2, 6, 7, 8, 9


@dataclass(frozen=True, slots=True)
class Places:
    """Where replicas stand: what fails together."""

    server_of_replica: np.ndarray
    """int64 [R]"""
    zone_of_server: np.ndarray
    """int64 [S]"""
    gpus_of_replica: np.ndarray
    """int64 [R]"""

    def on_servers(self, servers: np.ndarray) -> tuple[int, ...]:
        """Return the replicas on some servers."""
        return tuple(np.flatnonzero(np.isin(self.server_of_replica, servers)).tolist())


@dataclass(frozen=True, slots=True)
class Loss:
    """One loss: which replicas are down, from when to when."""

    kind: str
    replicas: tuple[int, ...]
    start_s: float
    end_s: float
    notice_s: float | None = None
    """When the gateway is warned; None for no warning."""

    @property
    def is_off(self) -> bool:
        """Whether the servers draw no power meanwhile, or are not ours."""
        return self.kind in ("server_loss", "zone_loss", "spot_reclaim")

    @property
    def record(self) -> TroubleRecord:
        """What is told about it afterwards."""
        return TroubleRecord(
            kind=self.kind, at_s=self.start_s, end_s=self.end_s, replicas=self.replicas
        )


def draw_crashes(config: FaultConfig, num_replicas: int, horizon_s: float, seed: int) -> list[Loss]:
    """Return the engines' crashes; none overlap on a replica."""
    rng = np.random.default_rng([seed, _CRASH])
    losses = []
    for replica in range(num_replicas):
        up_from_s = 0.0
        count = rng.poisson(config.crashes_per_hour * horizon_s / 3600.0)
        starts = np.sort(rng.uniform(0.0, horizon_s, count))
        for at_s, span_s in zip(starts, rng.uniform(*config.restart_span_s, count), strict=True):
            if at_s > up_from_s:
                up_from_s = at_s + span_s
                losses.append(Loss("crash", (replica,), float(at_s), float(up_from_s)))
    return losses


def draw_outages(
    outages: Outages, num_things: int, horizon_s: float, rng: np.random.Generator, speed: float
) -> list[tuple[int, FaultSpan]]:
    """Return which thing is lost, and when; `speed` is the acceleration."""
    rate_per_s = speed * outages.per_hour * num_things / 3600.0
    starts = draw_bursts(
        rng, rate_per_s, horizon_s, frac=outages.burst_frac, gap_s=outages.burst_gap_s / speed
    )
    spans_s = draw_quantiles(rng, outages.down_quantiles_s, starts.size) / speed
    things = rng.integers(num_things, size=starts.size)
    return [
        (int(thing), FaultSpan(float(start), float(start + span_s), 1.0))
        for thing, start, span_s in zip(things, starts, spans_s, strict=True)
    ]


def _draw_spot(config: FaultConfig, places: Places, horizon_s: float, seed: int) -> list[Loss]:
    spot, speed = config.spot, config.acceleration
    rng = np.random.default_rng([seed, _SPOT])
    num_servers = places.zone_of_server.size
    if spot.server_frac == 0.0:
        return []
    count = max(1, round(spot.server_frac * num_servers))
    servers = np.sort(rng.choice(num_servers, count, replace=False))
    groups = [np.array([server]) for server in servers]
    if spot.is_zone_wide:
        zones = places.zone_of_server[servers]
        groups = [servers[zones == zone] for zone in np.unique(zones)]
    losses = []
    for group in groups:
        up_from_s, first_frac = 0.0, rng.random()
        while True:
            up_s = float(draw_quantiles(rng, spot.up_quantiles_s, 1)[0]) / speed
            down_s = float(draw_quantiles(rng, spot.down_quantiles_s, 1)[0]) / speed
            start_s = up_from_s + up_s * (first_frac if up_from_s == 0.0 else 1.0)
            if start_s >= horizon_s:
                break
            notice_s = max(up_from_s, start_s - spot.notice_s)
            end_s = start_s + down_s
            replicas = places.on_servers(group)
            losses.append(Loss("spot_reclaim", replicas, start_s, end_s, notice_s))
            up_from_s = end_s
    return losses


def draw_losses(config: FaultConfig, places: Places, horizon_s: float, seed: int) -> list[Loss]:
    """Return every loss of a run."""
    losses = draw_crashes(config, places.server_of_replica.size, horizon_s, seed)
    gpus = np.repeat(np.arange(places.gpus_of_replica.size), places.gpus_of_replica)
    zones = np.unique(places.zone_of_server)
    kinds = (
        ("gpu_loss", config.gpu_loss, _GPU, [(int(replica),) for replica in gpus]),
        (
            "server_loss",
            config.server_loss,
            _SERVER,
            [places.on_servers(np.array([s])) for s in range(places.zone_of_server.size)],
        ),
        (
            "zone_loss",
            config.zone_loss,
            _ZONE,
            [places.on_servers(np.flatnonzero(places.zone_of_server == z)) for z in zones],
        ),
    )
    for kind, outages, stream, replicas in kinds:
        rng = np.random.default_rng([seed, stream])
        drawn = draw_outages(outages, len(replicas), horizon_s, rng, config.acceleration)
        losses += [Loss(kind, replicas[i], span.start_s, span.end_s) for i, span in drawn]
    return losses + _draw_spot(config, places, horizon_s, seed)


def _overlaps(spans: np.ndarray, start_s: float, end_s: float) -> np.ndarray:
    """Return which spans [K, 2] have a moment in common with another."""
    return np.asarray((spans[:, 0] <= end_s) & (spans[:, 1] >= start_s))


def _down_times(losses: list[Loss]) -> tuple[list[tuple[float, float]], dict[float, float]]:
    """Return a replica's down times, and the notice of those that are announced, by their start.

    A reclaim that is announced while the replica is down, or that comes upon a loss in its
    notice, just lengthens that loss.
    """
    others = merged([(loss.start_s, loss.end_s) for loss in losses if loss.notice_s is None])
    table = np.array(others).reshape(-1, 2)
    downs, notices = list(others), {}
    for loss in losses:
        if loss.notice_s is None:
            continue
        before = table[_overlaps(table, loss.notice_s, loss.start_s), 0]
        if before.size == 0:
            notices[loss.start_s] = loss.notice_s
        downs.append(
            (float(min(loss.start_s, *before)) if before.size else loss.start_s, loss.end_s)
        )
    return merged(downs), notices


def _replica_events(
    replica: int, losses: list[Loss], detection_delay_s: float
) -> list[tuple[float, int, int, float]]:
    off = np.array([(loss.start_s, loss.end_s) for loss in losses if loss.is_off]).reshape(-1, 2)
    downs, notices = _down_times(losses)
    events = [(at_s, NOTICE, replica, 0.0) for at_s in notices.values()]
    for start_s, end_s in downs:
        is_off = float(_overlaps(off, start_s, end_s).any())
        noticed_s = start_s
        if detection_delay_s > 0.0 and start_s not in notices:
            noticed_s = min(start_s + detection_delay_s, end_s)
            events.append((start_s, DIE, replica, is_off))
        events.append((noticed_s, CRASH, replica, is_off))
        events.append((end_s, RESTART, replica, 0.0))
    return events


def outage_events(
    losses: Iterable[Loss], num_replicas: int, detection_delay_s: float = 0.0
) -> list[tuple[float, int, int, float]]:
    """Return the events that take replicas down and up; no two down times of one overlap.

    The value of DIE and CRASH is 1 where the replica draws no power while it is down.
    """
    by_replica: list[list[Loss]] = [[] for _ in range(num_replicas)]
    for loss in losses:
        for replica in loss.replicas:
            by_replica[replica].append(loss)
    return [
        event
        for replica, own in enumerate(by_replica)
        for event in _replica_events(replica, own, detection_delay_s)
    ]
