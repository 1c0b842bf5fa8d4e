"""Which servers stand in a rack, and where their values stand in the rack's arrays.

A rack's features are one flat vector of cells: node kind after node kind, row after row, feature
after feature. Aggregator and hub both build it from the layout, so no frame has to describe it.

Does not know: values, or the fleet that the rack is part of (`fleet_layout.py`).
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...env.state.feature import Node
from ...env.state.registry import FEATURES_BY_NODE
from .signals import Scope

IntArray = NDArray[np.int64]

RACK_NODES = (Node.GPU, Node.SERVER, Node.REPLICA, Node.LINK)
"""Kinds of nodes whose features a rack derives, in the order of its cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPlace:
    """One server of a rack."""

    server: str
    """Unique in the fleet."""
    probe: str
    """Unique in the rack: who samples it."""
    num_gpus: int
    num_replicas: int = 0
    num_links: int = 0
    """Its link nodes: NVLink fabric, PCIe roots, network adapter."""

    def __post_init__(self) -> None:
        for name in ("num_gpus", "num_replicas", "num_links"):
            if (value := getattr(self, name)) < 0:
                msg = f"{name} of server {self.server!r} must be at least 0, got {value}"
                raise ValueError(msg)


@dataclass(frozen=True, kw_only=True)
class RackLayout:
    """The servers of a rack in order, and the rows that they make.

    Rows of GPUs and replicas are padded to the largest server; links stand without padding.
    """

    rack: str
    servers: tuple[ServerPlace, ...]

    def __post_init__(self) -> None:
        if not self.servers:
            msg = f"rack {self.rack!r} must have at least 1 server, got none"
            raise ValueError(msg)
        probes = [place.probe for place in self.servers]
        if len(set(probes)) < len(probes):
            twice = next(name for name in probes if probes.count(name) > 1)
            msg = f"rack {self.rack!r} has probe {twice!r} twice; names must be unique in a rack"
            raise ValueError(msg)

    @cached_property
    def num_entities(self) -> dict[Scope, int]:
        """Rows of a server in a block of raw signals, padded to the largest server."""
        return {
            Scope.SERVER: 1,
            Scope.GPU: max(place.num_gpus for place in self.servers),
            Scope.REPLICA: max(place.num_replicas for place in self.servers),
        }

    @cached_property
    def row_server(self) -> dict[Node, IntArray]:
        """By node kind: [rows], the server that a row belongs to."""
        everyone = np.arange(len(self.servers))
        links = [place.num_links for place in self.servers]
        return {
            Node.GPU: np.repeat(everyone, self.num_entities[Scope.GPU]),
            Node.SERVER: everyone,
            Node.REPLICA: np.repeat(everyone, self.num_entities[Scope.REPLICA]),
            Node.LINK: np.repeat(everyone, links),
        }

    @cached_property
    def is_real(self) -> dict[Node, NDArray[np.bool_]]:
        """By node kind: [rows], False where a row is padding."""
        gpus, replicas = self.num_entities[Scope.GPU], self.num_entities[Scope.REPLICA]
        num_gpus = np.array([place.num_gpus for place in self.servers])
        num_replicas = np.array([place.num_replicas for place in self.servers])
        return {
            Node.GPU: (np.arange(gpus) < num_gpus[:, None]).ravel(),
            Node.SERVER: np.ones(len(self.servers), np.bool_),
            Node.REPLICA: (np.arange(replicas) < num_replicas[:, None]).ravel(),
            Node.LINK: np.ones(len(self.row_server[Node.LINK]), np.bool_),
        }

    @cached_property
    def cells(self) -> dict[Node, slice]:
        """By node kind: its part of the flat vector of cells."""
        slices, start = {}, 0
        for node in RACK_NODES:
            size = len(self.row_server[node]) * len(FEATURES_BY_NODE[node])
            slices[node] = slice(start, start + size)
            start += size
        return slices

    @property
    def num_cells(self) -> int:
        """Length of the flat vector of cells."""
        return int(self.cells[RACK_NODES[-1]].stop)

    @cached_property
    def cell_server(self) -> NDArray[np.int32]:
        """[cells]: the server that a cell belongs to."""
        return np.concatenate(
            [np.repeat(self.row_server[n], len(FEATURES_BY_NODE[n])) for n in RACK_NODES]
        ).astype(np.int32)

    @cached_property
    def hash(self) -> str:
        """What changes when the cells of two layouts must not be mixed."""
        shape = [(p.server, p.num_gpus, p.num_replicas, p.num_links) for p in self.servers]
        return hashlib.sha256(repr((self.rack, shape)).encode()).hexdigest()[:16]
