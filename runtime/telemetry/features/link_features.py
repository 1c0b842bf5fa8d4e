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
        self._servers = {kind: _servers(links, kind) for kind in KINDS}
        self._rows = {
            kind: np.array([i for i, one in enumerate(links) if one.kind == kind], dtype=np.int64)
            for kind in KINDS
        }
        num_gpus = constants.gpus.tdp_watts.shape[1]
        self._uses = np.zeros((len(links), num_gpus))
        for uses, link in zip(self._uses, links, strict=True):
            uses[list(link.gpus)] = 1.0

    def values(self, gpus: FloatArray, servers: FloatArray) -> FloatArray:
        """Return the features.

        Shapes: `gpus` [S, G, features of `Node.GPU`]; `servers` [S, features of `Node.SERVER`].
        """
        values = self._static.copy()
        for name, of_gpu, of_server in (
            ("out_frac", "tx_frac", "network_tx_frac"),
            ("in_frac", "rx_frac", "network_rx_frac"),
        ):
            into = _link_column(name)
            values[self._rows["nvlink"], into] = self._over_gpus(gpus, "nvlink", f"nvlink_{of_gpu}")
            # Its GPUs share the root's lanes: their shares add up.
            values[self._rows["pcie"], into] = self._over_gpus(
                gpus, "pcie", f"pcie_{of_gpu}", is_sum=True
            )
            on = self._servers["network"]
            values[self._rows["network"], into] = servers[on, column(Node.SERVER, of_server)]
        on, into = self._servers["network"], _link_column("bytes_per_s")
        values[self._rows["network"], into] = (
            NETWORK_ACHIEVED_FRAC * servers[on, column(Node.SERVER, "network_bytes_per_s")]
        )
        into = _link_column("health_frac")
        for kind, source in (("nvlink", "nvlink_links_up_frac"), ("pcie", "pcie_link_frac")):
            values[self._rows[kind], into] = self._over_gpus(gpus, kind, source)
        return values

    def _over_gpus(
        self, gpus: FloatArray, kind: str, name: str, *, is_sum: bool = False
    ) -> FloatArray:
        """Return the mean, or the sum, of a feature over the GPUs of each link of a kind."""
        uses = self._uses[self._rows[kind]]
        values = gpus[self._servers[kind], :, column(Node.GPU, name)]  # [links of the kind, G]
        known = np.isfinite(values) * uses
        total = (np.where(np.isfinite(values), values, 0.0) * uses).sum(axis=1)
        number = known.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = total / number
        result: FloatArray = np.where(number > 0, total, np.nan) if is_sum else mean
        return result


def _servers(links: tuple[RackLink, ...], kind: str) -> NDArray[np.int64]:
    return np.array([link.server for link in links if link.kind == kind], dtype=np.int64)


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
