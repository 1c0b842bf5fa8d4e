"""Which replicas stand at each node of the state, and what the nodes are called.

Does not know: rules, or values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...env.cluster import ClusterSpec
from ...env.state.edges import Edge
from ...env.state.feature import FloatArray, Node
from ...env.state.graph import edges_of, graph_of

IntArray = NDArray[np.int64]

# Tenants of a simulated fleet, in the order of the state (`env/state/graph.py`).
SIMULATED_TENANTS = ("interactive", "batch")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReplicasAt:
    """The replicas at each node of a kind; a replica may stand at several.

    Shapes: `first` [nodes + 1], `replicas` [pairs]: those of node i are
    `replicas[first[i] : first[i + 1]]`.
    """

    first: IntArray
    replicas: IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Places:
    """Names of all nodes, and the replicas at them, in the order of the state.

    Shapes: R replicas.
    """

    names: Mapping[Node, tuple[str, ...]]
    """By node kind."""
    replicas_at: Mapping[Node, ReplicasAt]
    """By node kind; tenants and the fleet stand on no replica of their own."""
    model: IntArray
    """[R]: number of the model that each replica serves, from 0."""
    batch_slots: FloatArray
    """[R]: most sequences in a batch."""

    @property
    def num_replicas(self) -> int:
        """Replicas of the fleet."""
        return int(self.model.size)


def places_of(cluster: ClusterSpec, tenants: Sequence[str] = SIMULATED_TENANTS) -> Places:
    """Return the places of a cluster, in the order of its simulated and its live state."""
    graph, edges, replicas = graph_of(cluster), edges_of(cluster), cluster.replicas
    num_replicas = len(replicas)
    own = np.arange(num_replicas)
    server = edges[Edge.ON_SERVER].target
    zone = graph.server_zone[server]
    models = list(dict.fromkeys(replica.model for replica in replicas))
    names = {
        Node.REPLICA: tuple(replica.name for replica in replicas),
        Node.GPU: graph.gpu_names,
        Node.SERVER: tuple(one.name for one in cluster.servers),
        Node.LINK: tuple(link.name for link in graph.links),
        Node.ZONE: graph.zones,
        Node.TENANT: tuple(tenants),
        Node.FLEET: (cluster.name,),
    }
    pairs = {
        Node.REPLICA: (own, own),
        Node.GPU: (graph.host_gpu, graph.host_replica),
        Node.SERVER: (server, own),
        Node.LINK: _link_pairs(cluster, server),
        Node.ZONE: (zone, own),
    }
    nobody = np.zeros(0, np.int64)
    return Places(
        names=names,
        replicas_at={
            node: replicas_at(len(names[node]), *pairs.get(node, (nobody, nobody))) for node in Node
        },
        model=np.array([models.index(replica.model) for replica in replicas], np.int64),
        batch_slots=np.array([replica.max_num_seqs for replica in replicas], np.float64),
    )


def replicas_at(num_nodes: int, nodes: IntArray, replicas: IntArray) -> ReplicasAt:
    """Return the replicas at each node from (node, replica) pairs in any order.

    Shapes: `nodes`, `replicas` [pairs].
    """
    pairs = np.unique(np.stack([nodes, replicas]).astype(np.int64), axis=1)
    counts = np.bincount(pairs[0], minlength=num_nodes)
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return ReplicasAt(first=first, replicas=np.ascontiguousarray(pairs[1]))


def _link_pairs(cluster: ClusterSpec, server: IntArray) -> tuple[IntArray, IntArray]:
    """Pairs of links and the replicas behind them; a path between zones has none behind it."""
    graph, edges = graph_of(cluster), edges_of(cluster)
    links, replicas = [], []
    for of_gpu in (graph.gpu_nvlink, graph.gpu_pcie):
        wired = of_gpu[graph.host_gpu] >= 0
        links.append(of_gpu[graph.host_gpu][wired])
        replicas.append(graph.host_replica[wired])
    adapter = np.empty(len(cluster.servers), np.int64)
    adapter[edges[Edge.RDMA].source] = edges[Edge.RDMA].target
    links.append(adapter[server])
    replicas.append(np.arange(server.size))
    return np.concatenate(links), np.concatenate(replicas)
