"""A site: a fleet, its traffic, its service levels, and what its scheduler does not know of it.

Does not know: how sites are drawn (`sampling.py`), or what happens at one (`episode.py`).
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from ..belief import Belief
from ..cluster import ClusterSpec, ReplicaSpec, ServerSpec, kv_pages
from ..hardware import GPUS, unknown_name_message
from ..model_profile import MODELS
from ..simulator.faults import FaultConfig
from ..simulator.setup import FleetConfig
from ..simulator.workload import ServiceLevels
from .regime import RegimeKind
from .split import Split
from .traffic import Traffic

_GPUS_PER_SERVER = 8
_NUM_ZONES = 2
# Slow-downs of a replica and of a server an hour at full strength: a replica is slow about a third
# of the time, as in the bundled scenario.
_REPLICA_SLOWDOWNS_PER_HOUR, _SERVER_SLOWDOWNS_PER_HOUR = 30.0, 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Replicas on one kind of GPU.

    Raises:
        ValueError: there is no such GPU, or a number is below 1.
    """

    gpu: str
    """Name in `hardware.GPUS`."""
    num_replicas: int
    """At least 1."""
    gpus_per_replica: int
    """Degree of tensor parallelism."""

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            raise ValueError(unknown_name_message("GPU", self.gpu, GPUS))
        for name in ("num_replicas", "gpus_per_replica"):
            if not getattr(self, name) >= 1:
                msg = f"{name} must be at least 1, got {getattr(self, name)}"
                raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Everything that is constant about a site.

    Raises:
        ValueError: a value is out of its bounds.
    """

    split: Split
    """What it is for."""
    number: int
    """Its number in the split."""
    model: str
    """Model that all its replicas serve."""
    pools: tuple[Pool, ...]
    """Its replicas, one pool a kind of GPU."""
    kv_frac: float
    """Share of the KV pages that its engines have: 1 or a half."""
    traffic: Traffic
    """What arrives, outside of regimes that say otherwise."""
    ttft_slo_s: tuple[float, float]
    """Limits on the time to first token by class; longer in proportion for prompts above
    `LONG_PROMPT_TOKENS`."""
    tpot_slo_s: tuple[float, float]
    """Limits on the time per further token by class."""
    urgent_frac: float
    """Share of sessions in the urgent class, whose requests weigh twice."""
    scrape_interval_s: float
    """Time between reads of the engines' metrics pages."""
    slowdown_strength: float
    """Hidden slow-downs: 0, a half or 1."""
    beliefs: tuple[Belief, ...]
    """How far the scheduler's latency coefficients are off; empty where they are right."""
    load_frac: float
    """Rate over the site's capacity; of a changing site, in its usual regime."""
    regimes: tuple[RegimeKind, ...] = ()
    """Regimes that its episodes change between; none at a steady site."""

    def __post_init__(self) -> None:
        for name in ("kv_frac", "urgent_frac", "slowdown_strength"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                msg = f"{name} must be in [0, 1], got {getattr(self, name)}"
                raise ValueError(msg)
        for name in ("kv_frac", "load_frac", "scrape_interval_s"):
            if not 0.0 < getattr(self, name) <= 100.0:
                msg = f"{name} must be above 0 and at most 100, got {getattr(self, name)}"
                raise ValueError(msg)
        if self.model not in MODELS:
            raise ValueError(unknown_name_message("model", self.model, MODELS))
        if self.number < 0 or not self.pools:
            msg = f"a site needs a number of at least 0 and a pool, got {self.number}, {self.pools}"
            raise ValueError(msg)

    @property
    def name(self) -> str:
        """Split and number."""
        return f"{self.split}/{self.number}"

    @property
    def is_changing(self) -> bool:
        """Whether its episodes have regimes."""
        return bool(self.regimes)

    @property
    def num_replicas(self) -> int:
        """Replicas of all pools."""
        return sum(pool.num_replicas for pool in self.pools)

    @property
    def cluster(self) -> ClusterSpec:
        """The fleet as it is built."""
        return _cluster(self.name, self.model, self.pools, self.kv_frac)

    @property
    def levels(self) -> ServiceLevels:
        """Limits and weights by class."""
        return ServiceLevels(ttft_slo_s=self.ttft_slo_s, tpot_slo_s=self.tpot_slo_s)

    @property
    def config(self) -> FleetConfig:
        """How its fleet behaves, the trouble of single regimes apart."""
        return FleetConfig(
            scrape_interval_s=self.scrape_interval_s,
            faults=FaultConfig(
                replica_slowdowns_per_hour=self.slowdown_strength * _REPLICA_SLOWDOWNS_PER_HOUR,
                server_slowdowns_per_hour=self.slowdown_strength * _SERVER_SLOWDOWNS_PER_HOUR,
            ),
            beliefs=self.beliefs,
        )

    @property
    def max_prompt_tokens(self) -> int:
        """Longest prompt that is let in: a power of two, at most a quarter of a replica's KV."""
        pages = min(kv_pages(self.cluster, replica) for replica in self.cluster.replicas)
        quarter_tokens = pages * self.cluster.replicas[0].page_tokens // 4
        return int(2 ** np.floor(np.log2(min(quarter_tokens, MOST_PROMPT_TOKENS))))


LONG_PROMPT_TOKENS = 4096
"""Prompts above this have a TTFT limit that grows with them."""
MOST_PROMPT_TOKENS = 32_768
"""Longest prompt at any site."""


@lru_cache(maxsize=256)
def _cluster(name: str, model: str, pools: tuple[Pool, ...], kv_frac: float) -> ClusterSpec:
    servers: list[ServerSpec] = []
    replicas: list[ReplicaSpec] = []
    for pool in pools:
        per_server = _GPUS_PER_SERVER // pool.gpus_per_replica
        for i in range(pool.num_replicas):
            place = i % per_server
            if place == 0:
                servers.append(
                    ServerSpec(
                        name=f"{pool.gpu.lower()}-{i // per_server}",
                        zone=f"zone-{len(servers) % _NUM_ZONES}",
                        gpu=pool.gpu,
                        num_gpus=_GPUS_PER_SERVER,
                    )
                )
            first = place * pool.gpus_per_replica
            replicas.append(
                ReplicaSpec(
                    name=f"{pool.gpu.lower()}-r{i}",
                    server=servers[-1].name,
                    model=model,
                    gpu_indices=tuple(range(first, first + pool.gpus_per_replica)),
                )
            )
    whole = ClusterSpec(name=name, servers=tuple(servers), replicas=tuple(replicas))
    if kv_frac == 1.0:
        return whole
    fewer = (replace(one, kv_blocks=int(kv_frac * kv_pages(whole, one))) for one in replicas)
    return replace(whole, replicas=tuple(fewer))
