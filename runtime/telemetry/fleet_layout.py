"""Where the rows of every rack stand in the state of the fleet, and what never changes about it.

A fleet that is known by its probes alone has the rows of its racks, one after another; one that a
cluster file describes has the order and the edges that its simulation has.

Does not know: values, or frames.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...env.cluster import ClusterSpec
from ...env.state.edges import Edge, Edges
from ...env.state.feature import Node
from ...env.state.graph import NUM_TENANTS, edges_of, graph_of
from .features.link_features import rack_links
from .features.server_facts import facts_of_cluster
from .rack_layout import RACK_NODES, RackLayout, ServerPlace
from .signals import Scope

IntArray = NDArray[np.int64]

NONE = -1
"""No row: padding of a rack; or no replica that a GPU serves."""
SERVERS_PER_RACK = 32
"""Of a cluster for which nobody says which server stands in which rack."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FleetLayout:
    """The racks of a fleet, and where their rows stand.

    Shapes: `rows[i][node]` [rows of rack i], rows of the fleet, `NONE` for padding; each row of the
    fleet at most once; `gpu_replica`, `gpu_server` [GPUs of the fleet].
    """

    racks: tuple[RackLayout, ...]
    num_rows: Mapping[Node, int]
    rows: tuple[Mapping[Node, IntArray], ...]
    gpu_replica: IntArray
    gpu_server: IntArray
    edges: Mapping[Edge, Edges] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [rack.rack for rack in self.racks]
        if not names:
            msg = "racks must be at least 1, got none; a fleet is seen through its racks"
            raise ValueError(msg)
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            msg = f"racks must have different names, got {twice!r} twice"
            raise ValueError(msg)
        for node in RACK_NODES:
            rows = np.concatenate([rows[node] for rows in self.rows])
            rows = rows[rows != NONE]
            if len(np.unique(rows)) < len(rows) or (rows >= self.num_rows[node]).any():
                msg = (
                    f"rows of {node} must be different and below {self.num_rows[node]}; "
                    f"two racks claim one row, or a row is beyond the fleet"
                )
                raise ValueError(msg)


def fleet_of_racks(
    racks: Sequence[RackLayout], *, num_zones: int = 0, num_tenants: int = 0
) -> FleetLayout:
    """Return a fleet whose rows are those of its racks, one after another.

    Which replica a GPU serves is not known here, and there are no edges.
    """
    next_row = dict.fromkeys(Node, 0)
    rows: list[dict[Node, IntArray]] = []
    gpu_server: list[IntArray] = []
    for rack in racks:
        first_server = next_row[Node.SERVER]
        of_rack = {}
        for node in RACK_NODES:
            is_real = rack.is_real[node]
            place = np.full(len(is_real), NONE, np.int64)
            number = int(is_real.sum())
            place[is_real] = np.arange(next_row[node], next_row[node] + number)
            next_row[node] += number
            of_rack[node] = place
        rows.append(of_rack)
        gpu_server.append(first_server + rack.row_server[Node.GPU][rack.is_real[Node.GPU]])
    num_rows = next_row | {Node.ZONE: num_zones, Node.TENANT: num_tenants, Node.FLEET: 1}
    return FleetLayout(
        racks=tuple(racks),
        num_rows=num_rows,
        rows=tuple(rows),
        gpu_replica=np.full(next_row[Node.GPU], NONE, np.int64),
        gpu_server=np.concatenate(gpu_server),
    )


def fleet_of_cluster(
    cluster: ClusterSpec, racks: Mapping[str, Sequence[str]] | None = None
) -> FleetLayout:
    """Return a fleet whose nodes and edges stand as in the simulated state of its cluster.

    `racks` names the servers of each rack; without it, racks `rack-000` and on have
    `SERVERS_PER_RACK` servers each, in the order of the cluster. A server in no rack is part of
    the fleet and never heard of. A probe is called like its server.

    Raises:
        ValueError: the cluster has no server of a name, a rack has none, or a server is in two.
    """
    servers = [server.name for server in cluster.servers]
    if racks is None:
        firsts = range(0, len(servers), SERVERS_PER_RACK)
        racks = {
            f"rack-{i:03d}": servers[first : first + SERVERS_PER_RACK]
            for i, first in enumerate(firsts)
        }
    layouts = tuple(
        RackLayout(rack=rack, servers=_places(cluster, names)) for rack, names in racks.items()
    )
    graph = graph_of(cluster)
    return FleetLayout(
        racks=layouts,
        num_rows={
            Node.GPU: len(graph.gpu_names),
            Node.SERVER: len(servers),
            Node.REPLICA: len(cluster.replicas),
            Node.TENANT: NUM_TENANTS,
            Node.LINK: len(graph.links),
            Node.ZONE: len(graph.zones),
            Node.FLEET: 1,
        },
        rows=rows_by_name(layouts, servers, _server_rows(cluster)),
        gpu_replica=graph.gpu_replica,
        gpu_server=graph.gpu_server,
        edges=edges_of(cluster),
    )


def _places(cluster: ClusterSpec, names: Sequence[str]) -> tuple[ServerPlace, ...]:
    return tuple(
        ServerPlace(
            server=facts.name,
            probe=facts.name,
            num_gpus=len(facts.gpus),
            num_replicas=len(facts.replicas),
            num_links=len(rack_links((facts,))),
        )
        for facts in facts_of_cluster(cluster, names)
    )


def _server_rows(cluster: ClusterSpec) -> dict[Node, dict[str, list[int]]]:
    """Return which rows of GPUs, replicas and links each server's own ones are, in its order."""
    graph = graph_of(cluster)
    gpus = {name: row for row, name in enumerate(graph.gpu_names)}
    links = {link.name: row for row, link in enumerate(graph.links)}
    rows: dict[Node, dict[str, list[int]]] = {Node.GPU: {}, Node.LINK: {}}
    rows[Node.REPLICA] = {server.name: [] for server in cluster.servers}
    for row, replica in enumerate(cluster.replicas):
        rows[Node.REPLICA][replica.server].append(row)
    for server in cluster.servers:
        names = [f"{server.name}/gpu-{k}" for k in range(server.num_gpus)]
        rows[Node.GPU][server.name] = [gpus[name] for name in names]
        ports = (f"{server.name}/nvlink", *(f"{n}/pcie" for n in names), f"{server.name}/network")
        # without a fabric there is no `nvlink`, and GPUs that share lanes have one `pcie`
        rows[Node.LINK][server.name] = [links[port] for port in ports if port in links]
    return rows


def rows_by_name(
    racks: Sequence[RackLayout],
    servers: Sequence[str],
    server_rows: Mapping[Node, Mapping[str, Sequence[int]]],
) -> tuple[dict[Node, IntArray], ...]:
    """Return rows of racks in a fleet that orders its nodes by itself.

    `servers` names the fleet's servers in its order; `server_rows` says for GPUs, replicas and
    links which rows of the fleet each server's own ones are, in their order on the server.

    Raises:
        ValueError: a server is unknown, or has another number of GPUs, replicas or links.
    """
    places = {name: i for i, name in enumerate(servers)}
    everything = []
    for rack in racks:
        of_rack = {node: np.full(len(rack.row_server[node]), NONE, np.int64) for node in RACK_NODES}
        first_link = 0
        for s, place in enumerate(rack.servers):
            if place.server not in places:
                msg = f"rack {rack.rack!r} has server {place.server!r}, which the fleet has not"
                raise ValueError(msg)
            of_rack[Node.SERVER][s] = places[place.server]
            for node, number, first in (
                (Node.GPU, place.num_gpus, s * rack.num_entities[Scope.GPU]),
                (Node.REPLICA, place.num_replicas, s * rack.num_entities[Scope.REPLICA]),
                (Node.LINK, place.num_links, first_link),
            ):
                rows = server_rows[node].get(place.server, ())
                if len(rows) != number:
                    msg = (
                        f"server {place.server!r} has {number} {node} rows in rack "
                        f"{rack.rack!r}, but {len(rows)} in the fleet; give both one cluster"
                    )
                    raise ValueError(msg)
                of_rack[node][first : first + number] = rows
            first_link += place.num_links
        everything.append(of_rack)
    return tuple(everything)
