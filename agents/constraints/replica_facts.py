"""What rules ask of a cluster's replicas, as arrays: where they are, what they serve, how fast.

Does not know: rules.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...env.cluster import ClusterSpec, Role
from ...env.hardware import unknown_name_message
from ...env.latency import base_time_s
from ...env.model_version import is_named
from ...env.restrictions import FloatArray
from ...env.simulator.setup import replica_coefficients
from .service_rules import Pool

BoolArray = NDArray[np.bool_]

SELECTORS: tuple[str, ...] = ("replicas", "servers", "zones", "gpus", "models")
"""By what a pool may choose its replicas; fields of `Pool`."""


class ReplicaFacts:
    """Replicas of one cluster by name, place and kind.

    Shapes: all arrays [R] or [R, 2], in the order of the cluster's replicas.
    """

    def __init__(self, cluster: ClusterSpec) -> None:
        servers = {server.name: server for server in cluster.servers}
        self.cluster = cluster
        self.num_replicas = len(cluster.replicas)
        self._servers = [servers[spec.server] for spec in cluster.replicas]
        values = {
            "replicas": [spec.name for spec in cluster.replicas],
            "servers": [spec.server for spec in cluster.replicas],
            "zones": [server.zone for server in self._servers],
            "gpus": [server.gpu for server in self._servers],
            "models": [spec.model for spec in cluster.replicas],
        }
        self._numbers = {
            key: {name: number for number, name in enumerate(dict.fromkeys(names))}
            for key, names in values.items()
        }
        self._codes = {
            key: np.array([self._numbers[key][name] for name in names], np.int64)
            for key, names in values.items()
        }
        self.is_spill = np.array([spec.is_spill for spec in cluster.replicas], np.bool_)
        takes_new = [spec.role is not Role.DECODE for spec in cluster.replicas]
        self.takes_new = np.array(takes_new, np.bool_)
        """Takes requests that have no KV yet."""

    @property
    def models(self) -> tuple[str, ...]:
        """Models that the cluster serves."""
        return tuple(self._numbers["models"])

    def everything(self) -> BoolArray:
        """Return all replicas."""
        return np.ones(self.num_replicas, np.bool_)

    def any_of(self, selector: str, names: Sequence[str]) -> BoolArray:
        """Return the replicas that one of the names is meant for; all if there is no name."""
        if not names:
            return self.everything()
        is_meant = np.zeros(len(self._numbers[selector]), np.bool_)
        is_meant[[number for name in names for number in self._meant(selector, name)]] = True
        return is_meant[self._codes[selector]]

    def _meant(self, selector: str, name: str) -> list[int]:
        """Return the numbers of what a name means; a model's bare name means all versions."""
        numbers = self._numbers[selector]
        if selector == "models":
            return [number for key, number in numbers.items() if is_named(key, name)]
        return [numbers[name]] if name in numbers else []

    def members(self, pool: Pool) -> BoolArray:
        """Return the replicas of a pool."""
        inside = self.everything()
        for selector in SELECTORS:
            inside &= self.any_of(selector, getattr(pool, selector))
        return inside

    def unknown(self, selector: str, names: Sequence[str]) -> Iterator[str]:
        """Yield a message for each name that the cluster does not have."""
        for name in names:
            if not self._meant(selector, name):
                known = self._numbers[selector]
                yield unknown_name_message(selector.removesuffix("s"), name, known)

    @cached_property
    def least_s(self) -> FloatArray:
        """Shortest possible time to a first token and per further one, when empty; [R, 2]."""
        first: dict[object, int] = {}
        kinds = np.empty(self.num_replicas, np.int64)
        for i, (spec, server) in enumerate(zip(self.cluster.replicas, self._servers, strict=True)):
            key = (server.gpu, spec.model, spec.precision, spec.tensor_parallel)
            more = (spec.pipeline_parallel, spec.expert_parallel, spec.compute_frac)
            kinds[i] = first.setdefault((*key, *more, spec.speculation), i)
        found, places = np.unique(kinds, return_inverse=True)
        specs = [self.cluster.replicas[i] for i in found]
        needed = {spec.server for spec in specs}
        servers = tuple(each for each in self.cluster.servers if each.name in needed)
        small = replace(self.cluster, servers=servers, replicas=tuple(specs))
        times = [
            (base_time_s(one, 1.0, 1.0, 0.0), base_time_s(one, 0.0, 0.0, 1.0))
            for one in replica_coefficients(small)
        ]
        return np.array(times)[places]
