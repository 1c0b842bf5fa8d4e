"""From the features of GPUs and servers to those of the links of a server.

A server's link nodes are, in this order: its NVLink fabric if it has one, its PCIe roots, its
network adapter; as in `env/state/graph.py`.

Does not know: paths between zones, which belong to no server.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....env.state.feature import FloatArray, Node
from ....env.state.registry import FEATURES_BY_NODE, column
from ....env.topology import (
    LOCAL_LATENCY_S,
    NETWORK_ACHIEVED_FRAC,
    NVLINK_ACHIEVED_FRAC,
    PCIE_ACHIEVED_FRAC,
)
from .grouping import Grouping
from .rack_constants import RackConstants
from .server_facts import ServerFacts

KINDS = ("nvlink", "pcie", "network", "backbone")


@dataclass(frozen=True, slots=True, kw_only=True)
class RackLink:
    """One link node of a rack."""

    kind: str
    """nvlink, pcie or network."""
    server: int
    """Index of its server in the rack."""
    gpus: tuple[int, ...]
    """GPUs of the server that use it."""


def rack_links(servers: tuple[ServerFacts, ...]) -> tuple[RackLink, ...]:
    """Return the link nodes of a rack, in the order of its servers."""
    links: list[RackLink] = []
    for s, server in enumerate(servers):
        on_nvlink = [g for g, gpu in enumerate(server.gpus) if gpu and gpu.nvlink_bytes_per_s]
        if on_nvlink:
            links.append(RackLink(kind="nvlink", server=s, gpus=tuple(on_nvlink)))
        step, num_gpus = server.gpus_per_pcie_root, len(server.gpus)
        for first in range(0, num_gpus, step):
            gpus = tuple(range(first, min(first + step, num_gpus)))
            links.append(RackLink(kind="pcie", server=s, gpus=gpus))
        links.append(RackLink(kind="network", server=s, gpus=()))
    return tuple(links)


def _link_column(name: str) -> int:
    return column(Node.LINK, name)


class LinkFeatures:
    """Derives the features of a rack's links.

    Shapes: values are [links, features of `Node.LINK`].
    """

    def __init__(self, constants: RackConstants) -> None:
        links = rack_links(constants.servers)
        self._static = np.full((len(links), len(FEATURES_BY_NODE[Node.LINK])), np.nan)
        for row, link in zip(self._static, links, strict=True):
            _fill_static(row, link, constants)
        num_gpus = constants.gpus.tdp_watts.shape[1]
        self._rows = {kind: _rows(links, kind) for kind in KINDS}
        self._groups = {kind: _grouping(links, kind, num_gpus) for kind in KINDS}
        self._adapters = np.array([links[i].server for i in self._rows["network"]], dtype=np.int64)

    def values(self, gpus: FloatArray, servers: FloatArray) -> FloatArray:
        """Return the features.

        Shapes: `gpus` [S * G, features of `Node.GPU`]; `servers` [S, features of `Node.SERVER`].
        """
        values = self._static.copy()
        nvlink, pcie = self._groups["nvlink"], self._groups["pcie"]
        for name, way in (("out_frac", "tx_frac"), ("in_frac", "rx_frac")):
            into = _link_column(name)
            of_nvlink = gpus[:, column(Node.GPU, f"nvlink_{way}")]
            values[self._rows["nvlink"], into] = nvlink.means(of_nvlink)
            # Its GPUs share the root's lanes: their shares add up.
            of_pcie = gpus[:, column(Node.GPU, f"pcie_{way}")]
            values[self._rows["pcie"], into] = pcie.sums(of_pcie)
            of_adapter = servers[self._adapters, column(Node.SERVER, f"network_{way}")]
            values[self._rows["network"], into] = of_adapter
        peak = servers[self._adapters, column(Node.SERVER, "network_bytes_per_s")]
        values[self._rows["network"], _link_column("bytes_per_s")] = NETWORK_ACHIEVED_FRAC * peak
        into = _link_column("health_frac")
        links_up = gpus[:, column(Node.GPU, "nvlink_links_up_frac")]
        values[self._rows["nvlink"], into] = nvlink.means(links_up)
        trained = gpus[:, column(Node.GPU, "pcie_link_frac")]
        values[self._rows["pcie"], into] = pcie.means(trained)
        return values


def _rows(links: tuple[RackLink, ...], kind: str) -> NDArray[np.int64]:
    return np.array([i for i, link in enumerate(links) if link.kind == kind], dtype=np.int64)


def _grouping(links: tuple[RackLink, ...], kind: str, num_gpus: int) -> Grouping:
    """Return which GPUs of the rack use which link of a kind."""
    of_kind = [link for link in links if link.kind == kind]
    pairs = [(link.server * num_gpus + g, i) for i, link in enumerate(of_kind) for g in link.gpus]
    members, groups = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return Grouping(members, groups, len(of_kind))


def _fill_static(row: FloatArray, link: RackLink, constants: RackConstants) -> None:
    """Fill what never changes about a link."""
    for kind in KINDS:
        row[_link_column(f"is_{kind}")] = float(link.kind == kind)
    server = constants.servers[link.server]
    places = (link.server, list(link.gpus))
    if link.kind == "nvlink":
        row[_link_column("bytes_per_s")] = (
            NVLINK_ACHIEVED_FRAC * constants.gpus.nvlink_bytes_per_s[places].min()
        )
        row[_link_column("latency_s")] = LOCAL_LATENCY_S
    elif link.kind == "pcie":
        row[_link_column("bytes_per_s")] = (
            PCIE_ACHIEVED_FRAC * constants.gpus.pcie_bytes_per_s[places].min()
        )
        row[_link_column("latency_s")] = 0.0
    elif server.network_latency_s is not None:
        row[_link_column("latency_s")] = server.network_latency_s
