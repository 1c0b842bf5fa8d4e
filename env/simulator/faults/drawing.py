"""Draws the tables of a run's trouble from a seed: slow-downs by replica, events in order of time.

A slow-down hits one replica (a noisy neighbour, a throttled GPU) or a whole server (a hot rack);
factors of overlapping ones multiply. Each kind of trouble has a random stream of its own, so that
switching one on leaves the draws of the others as they are.

Does not know: how replicas react. Schedulers never see these tables.
"""

from dataclasses import dataclass

import numpy as np

from ...cluster import ClusterSpec
from ..layout import (
    EVENT_DTYPE,
    KV_LOSS,
    LINK,
    PAGE_FROZEN,
    PAGE_LOST,
    QUEUE_LIE,
    SLOWDOWN_DTYPE,
    STALL,
)
from .config import FaultConfig
from .outages import Places, draw_losses, outage_events
from .outages import draw_crashes as draw_crash_losses
from .processes import (
    FaultSpan,
    Steps,
    draw_spans,
    merged,
    multiply_steps,
    product_steps,
    wander,
)
from .record import TroubleRecord

__all__ = [
    "Places",
    "draw_crashes",
    "draw_link_events",
    "draw_slowdowns",
    "draw_trouble",
    "places_of",
]

# Random streams; those of outages are in `outages.py`.
_SLOWDOWN, _DRIFT, _NVLINK, _LINK, _STALL, _KV = 1, 3, 4, 5, 10, 11
_PAGE_LOST, _PAGE_FROZEN, _QUEUE_LIE = 12, 13, 14

Events = list[tuple[float, int, int, float]]


def places_of(cluster: ClusterSpec) -> Places:
    """Return where the replicas of a cluster stand."""
    servers = {server.name: i for i, server in enumerate(cluster.servers)}
    zones = list(dict.fromkeys(server.zone for server in cluster.servers))
    return Places(
        server_of_replica=np.array([servers[r.server] for r in cluster.replicas], np.int64),
        zone_of_server=np.array([zones.index(server.zone) for server in cluster.servers], np.int64),
        gpus_of_replica=np.array([r.tensor_parallel for r in cluster.replicas], np.int64),
    )


@dataclass(frozen=True, slots=True)
class _Slowdowns:
    """On/off slow-downs, by server and by replica."""

    by_server: list[list[FaultSpan]]
    by_replica: list[list[FaultSpan]]


def _draw_on_off(
    config: FaultConfig, servers: np.ndarray, gpus: np.ndarray | None, horizon_s: float, seed: int
) -> _Slowdowns:
    rng = np.random.default_rng([seed, _SLOWDOWN])
    span_s, factor = config.slowdown_span_s, config.slowdown_factor
    by_server = [
        draw_spans(rng, config.server_slowdowns_per_hour, horizon_s, span_s, factor)
        for _ in range(int(servers.max()) + 1)
    ]
    by_replica = [
        draw_spans(rng, config.replica_slowdowns_per_hour, horizon_s, span_s, factor)
        for _ in servers
    ]
    links = config.links
    if gpus is not None and links.nvlink_degradations_per_hour > 0:
        rng = np.random.default_rng([seed, _NVLINK])
        for replica in np.flatnonzero(gpus > 1):
            by_replica[replica] += draw_spans(
                rng,
                links.nvlink_degradations_per_hour,
                horizon_s,
                links.span_s,
                links.nvlink_slowdown_factor,
            )
    return _Slowdowns(by_server, by_replica)


def _draw_drift(
    config: FaultConfig, servers: np.ndarray, horizon_s: float, seed: int
) -> list[Steps]:
    """Return each replica's wandering factor; nothing where it is switched off."""
    drift = config.drift
    if drift.sigma_log == drift.server_sigma_log == 0.0:
        return [[] for _ in servers]
    rng = np.random.default_rng([seed, _DRIFT])
    shape = {"relax_s": drift.relax_s, "step_s": drift.step_s, "horizon_s": horizon_s}
    shared = [wander(rng, drift.server_sigma_log, **shape) for _ in range(int(servers.max()) + 1)]
    result = []
    for server in servers:
        factor = np.exp(np.maximum(0.0, shared[server] + wander(rng, drift.sigma_log, **shape)))
        is_change = np.diff(factor, prepend=1.0) != 0.0
        at_s = drift.step_s * np.arange(factor.size)
        result.append(list(zip(at_s[is_change].tolist(), factor[is_change].tolist(), strict=True)))
    return result


def draw_slowdowns(
    config: FaultConfig,
    server_of_replica: np.ndarray,
    horizon_s: float,
    seed: int,
    gpus_of_replica: np.ndarray | None = None,
) -> np.ndarray:
    """Return each replica's slow-down changes, SLOWDOWN_DTYPE [R, K], padded with infinity."""
    on_off = _draw_on_off(config, server_of_replica, gpus_of_replica, horizon_s, seed)
    drift = _draw_drift(config, server_of_replica, horizon_s, seed)
    steps = [
        multiply_steps([product_steps(on_off.by_server[server] + own), wandering])
        for server, own, wandering in zip(server_of_replica, on_off.by_replica, drift, strict=True)
    ]
    table = np.zeros((len(steps), max(map(len, steps)) + 1), dtype=SLOWDOWN_DTYPE)
    table["at_s"] = np.inf
    table["factor"] = 1.0
    for row, changes in zip(table, steps, strict=True):
        row[: len(changes)] = np.array(changes, dtype=SLOWDOWN_DTYPE)
    return table


def draw_crashes(config: FaultConfig, num_replicas: int, horizon_s: float, seed: int) -> np.ndarray:
    """Return crashes and restarts in order of time, EVENT_DTYPE [K]; none overlap on a replica."""
    losses = draw_crash_losses(config, num_replicas, horizon_s, seed)
    return np.array(sorted(outage_events(losses, num_replicas)), dtype=EVENT_DTYPE)


def draw_link_events(
    config: FaultConfig, num_links: int, horizon_s: float, seed: int
) -> np.ndarray:
    """Return changes of the links' bandwidth, EVENT_DTYPE [K] of kind LINK, in order of time."""
    rng = np.random.default_rng([seed, _LINK])
    links, events = config.links, []
    if links.degradations_per_hour == 0.0:
        return np.zeros(0, dtype=EVENT_DTYPE)
    for link in range(num_links):
        spans = draw_spans(
            rng, links.degradations_per_hour, horizon_s, links.span_s, links.bandwidth_factor
        )
        events += [(at_s, LINK, link, factor) for at_s, factor in product_steps(spans)]
    return np.array(sorted(events), dtype=EVENT_DTYPE)


def _draw_replica_spans(
    config: FaultConfig, num_replicas: int, horizon_s: float, seed: int
) -> dict[str, list[list[FaultSpan]]]:
    """Return the spans of trouble that hits single replicas, by kind and replica."""
    kv, pages, stalls = config.kv_failures, config.metrics, config.stalls
    kinds = {
        "stall": (_STALL, stalls.per_hour, stalls.span_s, (1.0, 1.0)),
        "kv_failure": (_KV, kv.per_hour, kv.span_s, kv.pages_frac),
        "page_lost": (_PAGE_LOST, pages.outages_per_hour, pages.outage_span_s, (1.0, 1.0)),
        "page_frozen": (_PAGE_FROZEN, pages.freezes_per_hour, pages.freeze_span_s, (1.0, 1.0)),
        "queue_lie": (
            _QUEUE_LIE,
            pages.queue_lies_per_hour,
            pages.queue_lie_span_s,
            pages.queue_lie_factor,
        ),
    }
    spans = {}
    for kind, (stream, per_hour, span_s, value) in kinds.items():
        rng = np.random.default_rng([seed, stream])
        spans[kind] = [
            draw_spans(rng, per_hour, horizon_s, span_s, value) for _ in range(num_replicas)
        ]
    return spans


def _replica_events(spans: dict[str, list[list[FaultSpan]]]) -> Events:
    events: Events = []
    for r, own in enumerate(spans["stall"]):
        events += [(start, STALL, r, end - start) for start, end, _ in own]
    for r, own in enumerate(spans["kv_failure"]):
        left = product_steps([FaultSpan(start, end, 1.0 - frac) for start, end, frac in own])
        events += [(at_s, KV_LOSS, r, 1.0 - frac) for at_s, frac in left]
    for r, own in enumerate(spans["queue_lie"]):
        events += [(at_s, QUEUE_LIE, r, factor) for at_s, factor in product_steps(own)]
    for kind, event in (("page_lost", PAGE_LOST), ("page_frozen", PAGE_FROZEN)):
        for r, own in enumerate(spans[kind]):
            for start, end in merged([(start, end) for start, end, _ in own]):
                events += [(start, event, r, 1.0), (end, event, r, 0.0)]
    return events


def draw_trouble(
    config: FaultConfig, places: Places, horizon_s: float, seed: int
) -> tuple[np.ndarray, list[TroubleRecord]]:
    """Return the events of a run, EVENT_DTYPE [K], and the record of all its trouble, in order."""
    num_replicas = places.server_of_replica.size
    spans = _draw_replica_spans(config, num_replicas, horizon_s, seed)
    losses = draw_losses(config, places, horizon_s, seed)
    events = _replica_events(spans)
    events += outage_events(losses, num_replicas, config.metrics.detection_delay_s)
    on_off = _draw_on_off(config, places.server_of_replica, places.gpus_of_replica, horizon_s, seed)
    records = [
        TroubleRecord(kind=kind, at_s=start, end_s=end, replicas=(r,), value=value)
        for kind, by_replica in {**spans, "slowdown": on_off.by_replica}.items()
        for r, own in enumerate(by_replica)
        for start, end, value in own
    ]
    for server, own in enumerate(on_off.by_server):
        replicas = tuple(np.flatnonzero(places.server_of_replica == server).tolist())
        records += [
            TroubleRecord(kind="server_slowdown", at_s=s, end_s=e, replicas=replicas, value=v)
            for s, e, v in own
        ]
    records += [loss.record for loss in losses]
    order = sorted(records, key=lambda record: (record.at_s, record.kind, record.replicas))
    return np.array(sorted(events), dtype=EVENT_DTYPE), order
