"""What never changes of a cluster, in the form that the compiled readers take.

Does not know: what happens in a run.
"""

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from ...cluster import (
    OTHER_BYTES_PER_GPU,
    ClusterSpec,
    ReplicaSpec,
    kv_pages,
    pcie_copy_bytes_per_s,
)
from ...hardware import GPUS, Gpu, Precision
from ...model_shape import ModelProfile
from ...replica_memory import activation_bytes
from ...roofline import ACTIVATION_BYTES, ALL_REDUCES_PER_LAYER
from ...state.feature import FloatArray, Node
from ...state.graph import LINK_KINDS, NUM_TENANTS, graph_of
from ...state.registry import FEATURES_BY_NODE, column
from ...state.service_features import INPUT_BINS_TOKENS
from ...topology import WeightSource, storage_path, topology_of

PRECISIONS = (Precision.FP16, Precision.BF16, Precision.FP8, Precision.INT8)
"""In the order of the peaks in the registry; a precision's code is its place."""
_SOURCES = sorted(WeightSource, key=lambda source: source.code)


def _source_tag() -> str:
    """Return a hash of the readers and of their columns, so that numba's cache is never stale.

    numba looks only at the file of the function that it compiled, not at the constants and
    functions that this file took from others.
    """
    columns = {str(node): [f.name for f in known] for node, known in FEATURES_BY_NODE.items()}
    text = repr((columns, INPUT_BINS_TOKENS)).encode()
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join([text, *(f.read_bytes() for f in files)])).hexdigest()[:12]


# Of a replica; rates and bytes as `..layout` has them.
FACTS_DTYPE = np.dtype(
    [
        ("num_gpus", np.float64),
        ("server", np.int64),
        ("zone", np.int64),
        ("gpu_frac", np.float64),
        ("compute_frac", np.float64),
        # Arithmetic, FLOPs: of a token in the layers, of a token in the output head, of a pair of
        # tokens in attention over all full and all windowed layers.
        ("token_flops", np.float64),
        ("head_flops", np.float64),
        ("pair_flops", np.float64),
        ("window_pair_flops", np.float64),
        ("window_tokens", np.float64),
        ("precision", np.int64),
        ("attention_precision", np.int64),
        # Reading, bytes of one GPU: dense weights, all its experts, a token of KV in full and in
        # windowed layers.
        ("dense_gpu_bytes", np.float64),
        ("expert_gpu_bytes", np.float64),
        ("expert_miss_frac", np.float64),
        ("kv_gpu_bytes", np.float64),
        ("window_kv_gpu_bytes", np.float64),
        # Sending, bytes of one GPU and token to the others of the replica.
        ("link_gpu_bytes", np.float64),
        ("expert_messages", np.float64),  # a token
        ("expert_message_bytes", np.float64),  # to other GPUs, mean of a message
        # Memory of one GPU, as shares of what it has.
        ("weights_frac", np.float64),
        ("kv_pool_frac", np.float64),
        ("used_frac", np.float64),
        ("weight_load_s", np.float64, (len(_SOURCES),)),
        # Its GPU.
        ("peak_flops", np.float64, (len(PRECISIONS),)),
        ("hbm_bytes_per_s", np.float64),
        ("nvlink_bytes_per_s", np.float64),  # 0: none
        ("pcie_bytes_per_s", np.float64),
        ("pcie_copy_bytes_per_s", np.float64),
        ("tdp_w", np.float64),
        ("host_w", np.float64),
        ("gpu_idle_w", np.float64),
        (f"source_{_source_tag()}", np.int8),
    ]
)

# Where a GPU is attached, and a (GPU, replica) pair.
GPU_DTYPE = np.dtype(
    [("server", np.int64), ("nvlink", np.int64), ("pcie", np.int64), ("replica", np.int64)]
)
HOST_DTYPE = np.dtype([("gpu", np.int64), ("replica", np.int64)])
# Where a server stands: its zone, the link node of its network adapter, its disk's link.
SERVER_DTYPE = np.dtype([("zone", np.int64), ("network", np.int64), ("disk", np.int64)])
# Which link node a link of the topology is part of (-1: none), and which way.
LINK_PART_DTYPE = np.dtype([("node", np.int64), ("is_outward", np.int64)])


class Facts:
    """What never changes of a cluster: records for the readers, and features that stand fast.

    Shapes (R replicas, G GPUs, S servers, H hosts edges): `replicas` FACTS_DTYPE [R]; `gpus`
    GPU_DTYPE [G]; `hosts` HOST_DTYPE [H]; `servers` SERVER_DTYPE [S]; `link_parts`
    LINK_PART_DTYPE [links of the topology]; `fixed[node]` [nodes, features], NaN where a feature
    is not fixed.
    """

    def __init__(self, cluster: ClusterSpec) -> None:
        graph = graph_of(cluster)
        self.num_hosting = graph.num_hosting
        self.replicas = np.zeros(len(cluster.replicas), dtype=FACTS_DTYPE)
        servers = {server.name: i for i, server in enumerate(cluster.servers)}
        for i, replica in enumerate(cluster.replicas):
            record = self.replicas[i : i + 1]
            record["server"] = servers[replica.server]
            record["zone"] = graph.server_zone[servers[replica.server]]
            gpu = GPUS[cluster.servers[servers[replica.server]].gpu]
            _fill_gpu(record, gpu)
            _fill_work(record, replica, cluster.model_of(replica))
            _fill_memory(record, cluster, replica, gpu)
            record["weight_load_s"] = [_load_s(cluster, i, source) for source in _SOURCES]
        self.gpus = np.zeros(graph.gpu_server.size, dtype=GPU_DTYPE)
        self.gpus["server"], self.gpus["replica"] = graph.gpu_server, graph.gpu_replica
        self.gpus["nvlink"], self.gpus["pcie"] = graph.gpu_nvlink, graph.gpu_pcie
        self.hosts = np.zeros(graph.host_gpu.size, dtype=HOST_DTYPE)
        self.hosts["gpu"], self.hosts["replica"] = graph.host_gpu, graph.host_replica
        self.link_parts = np.zeros(len(topology_of(cluster).links), dtype=LINK_PART_DTYPE)
        self.link_parts["node"] = -1
        for node, link in enumerate(graph.links):
            self.link_parts["node"][[*link.outward, *link.inward]] = node
            self.link_parts["is_outward"][[*link.outward]] = 1
        self.servers = np.zeros(len(cluster.servers), dtype=SERVER_DTYPE)
        self.servers["zone"] = graph.server_zone
        nodes = {link.name: i for i, link in enumerate(graph.links)}
        for i, server in enumerate(cluster.servers):
            self.servers["network"][i] = nodes[f"{server.name}/network"]
            self.servers["disk"][i] = topology_of(cluster).link_index(f"{server.name}/disk")
        self.fixed = _fixed_values(cluster)


@lru_cache(maxsize=16)
def facts_of(cluster: ClusterSpec) -> Facts:
    """Return the facts of a cluster; its arrays are shared, do not change them."""
    return Facts(cluster)


def _fill_gpu(record: np.ndarray, gpu: Gpu) -> None:
    record["peak_flops"] = [gpu.peak_flops.get(precision, np.nan) for precision in PRECISIONS]
    record["hbm_bytes_per_s"] = gpu.hbm_bytes_per_s
    record["nvlink_bytes_per_s"] = gpu.nvlink_bytes_per_s or 0.0
    record["pcie_bytes_per_s"] = gpu.pcie_bytes_per_s
    record["pcie_copy_bytes_per_s"] = pcie_copy_bytes_per_s(gpu)
    record["tdp_w"], record["host_w"], record["gpu_idle_w"] = gpu.tdp_w, gpu.host_w, gpu.idle_w


def _fill_work(record: np.ndarray, replica: ReplicaSpec, model: ModelProfile) -> None:
    """Arithmetic, reading and sending of a token."""
    group, precision = replica.tensor_parallel, replica.precision
    attention = precision.attention_precision
    record["num_gpus"] = replica.num_gpus
    record["gpu_frac"], record["compute_frac"] = replica.gpu_frac, replica.compute_frac
    record["token_flops"] = model.matmul_flops_per_token()
    record["head_flops"] = 2.0 * model.embedding_params
    full_layers = model.num_layers - model.window_layers
    record["pair_flops"] = full_layers * model.layer_flops_per_pair
    record["window_pair_flops"] = model.window_layers * model.layer_flops_per_pair
    record["window_tokens"] = model.kv_window_tokens
    record["precision"] = PRECISIONS.index(precision)
    record["attention_precision"] = PRECISIONS.index(attention)
    record["dense_gpu_bytes"] = model.dense_read_bytes(precision) / group
    record["expert_gpu_bytes"] = model.expert_bytes(precision) / group
    record["expert_miss_frac"] = 1.0 - model.expert_use_frac
    read_bytes = model.kv_read_bytes_per_token(attention, tensor_parallel=group)
    layer_bytes = read_bytes / model.num_layers
    full_kv_layers = model.num_layers - model.kv_window_layers
    record["kv_gpu_bytes"] = full_kv_layers * layer_bytes / replica.num_gpus
    record["window_kv_gpu_bytes"] = model.kv_window_layers * layer_bytes / replica.num_gpus
    hidden_bytes = model.hidden_size * ACTIVATION_BYTES
    # A ring sends 2 (n - 1) / n of what it sums; stages hand the hidden vector on.
    sums = ALL_REDUCES_PER_LAYER * model.num_layers / replica.pipeline_parallel
    ring_frac = 2.0 * (group - 1) / group
    hand_on_frac = 1.0 - 1.0 / replica.pipeline_parallel
    record["link_gpu_bytes"] = hidden_bytes * (sums * ring_frac + hand_on_frac)
    record["expert_messages"] = model.experts_per_token * model.expert_layers
    away_frac = 1.0 - 1.0 / replica.expert_parallel
    record["expert_message_bytes"] = hidden_bytes * away_frac


def _fill_memory(record: np.ndarray, cluster: ClusterSpec, replica: ReplicaSpec, gpu: Gpu) -> None:
    model = cluster.model_of(replica)
    all_bytes = replica.num_gpus * gpu.hbm_bytes
    token_bytes = model.kv_bytes_per_token(
        replica.precision.attention_precision, tensor_parallel=replica.tensor_parallel
    )
    pool_bytes = kv_pages(cluster, replica) * token_bytes * replica.page_tokens
    weights_frac = model.weight_bytes(replica.precision) / all_bytes
    record["weights_frac"], record["kv_pool_frac"] = weights_frac, pool_bytes / all_bytes
    used_frac = weights_frac + pool_bytes / all_bytes + OTHER_BYTES_PER_GPU / gpu.hbm_bytes
    used_frac += activation_bytes(model, replica) / all_bytes
    record["used_frac"] = min(1.0, used_frac)


def _load_s(cluster: ClusterSpec, replica: int, source: WeightSource) -> float:
    """Return the time to load a replica's weights when nothing else is on the way."""
    links = {link.name: link for link in topology_of(cluster).links}
    spec = cluster.replicas[replica]
    weight_bytes = cluster.model_of(spec).weight_bytes(spec.precision)
    crossings = storage_path(cluster, replica, source)
    rate = min(links[crossing.link].bytes_per_s / crossing.share for crossing in crossings)
    return weight_bytes / rate


def _table(node: Node, num_nodes: int, columns: dict[str, object]) -> FloatArray:
    values = np.full((num_nodes, len(FEATURES_BY_NODE[node])), np.nan)
    for name, numbers in columns.items():
        values[:, column(node, name)] = numbers
    return values


def _fixed_values(cluster: ClusterSpec) -> dict[Node, FloatArray]:
    graph, servers = graph_of(cluster), cluster.servers
    gpus = [GPUS[servers[s].gpu] for s in graph.gpu_server]
    peaks: dict[str, object] = {
        f"peak_{precision}_flops": [gpu.peak_flops.get(precision, np.nan) for gpu in gpus]
        for precision in PRECISIONS
    }
    of_gpus = {
        "hbm_bytes": [gpu.hbm_bytes for gpu in gpus],
        "hbm_bytes_per_s": [gpu.hbm_bytes_per_s for gpu in gpus],
        "nvlink_bytes_per_s": [gpu.nvlink_bytes_per_s or np.nan for gpu in gpus],
        "pcie_bytes_per_s": [gpu.pcie_bytes_per_s for gpu in gpus],
        "nvlink_hops": _hops(cluster),
    }
    of_servers: dict[str, object] = {
        "network_bytes_per_s": [server.network_bytes_per_s for server in servers],
        "nvlink_bytes_per_s": [GPUS[server.gpu].nvlink_bytes_per_s or 0.0 for server in servers],
        "rtt_s": [2.0 * server.network_latency_s for server in servers],
    }
    return {
        Node.REPLICA: _table(Node.REPLICA, len(cluster.replicas), {}),
        Node.GPU: _table(Node.GPU, len(gpus), peaks | of_gpus),
        Node.SERVER: _table(Node.SERVER, len(servers), of_servers),
        Node.LINK: _fixed_links(cluster),
        Node.ZONE: _table(Node.ZONE, len(graph.zones), {}),
        Node.TENANT: _table(Node.TENANT, NUM_TENANTS, {}),
        Node.FLEET: _table(Node.FLEET, 1, {}),
    }


def _fixed_links(cluster: ClusterSpec) -> FloatArray:
    nodes, links = graph_of(cluster).links, topology_of(cluster).links
    firsts = [links[node.outward[0]] for node in nodes]
    columns: dict[str, object] = {
        f"is_{kind}": [float(node.kind == kind) for node in nodes] for kind in LINK_KINDS
    }
    columns["bytes_per_s"] = [
        len(node.outward) * first.bytes_per_s for node, first in zip(nodes, firsts, strict=True)
    ]
    columns["latency_s"] = [first.latency_s for first in firsts]
    return _table(Node.LINK, len(nodes), columns)


def _hops(cluster: ClusterSpec) -> list[float]:
    """Return the hops of each GPU to the others of its replica."""
    graph, hops = graph_of(cluster), []
    for s, r in zip(graph.gpu_server, graph.gpu_replica, strict=True):
        if r < 0 or cluster.replicas[r].num_gpus == 1:
            hops.append(0.0)
        else:
            hops.append(2.0 if GPUS[cluster.servers[s].gpu].nvlink_bytes_per_s is None else 1.0)
    return hops
