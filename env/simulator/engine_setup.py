"""Arrays of the engines' memory: prefix caches, host memory, adapter slots, window counts.

Does not know: what happens to them.
"""

import numpy as np

from ..cluster import ClusterSpec, host_kv_pages, page_copy_s
from .layout import ADAPTER_DTYPE, CACHE_ENTRY_DTYPE, HOST_DTYPE, SEQUENCE_DTYPE
from .workload import Workload


def make_cache(
    total_pages: np.ndarray, workload: Workload, block_pages: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return cache entries [R, C] and hash tables [R, H]; one entry if nothing can be cached."""
    most = int(total_pages.max()) // block_pages
    capacity = min(most + 1, workload.num_distinct_blocks) + 1 if most else 1
    entries = np.zeros((total_pages.size, capacity), dtype=CACHE_ENTRY_DTYPE)
    table_size = 1 << int(np.ceil(np.log2(2 * capacity)))
    return entries, np.zeros((total_pages.size, table_size), dtype=np.int32)


def make_hosts(cluster: ClusterSpec) -> np.ndarray:
    """Return the host memory of each replica, empty, HOST_DTYPE [R]."""
    hosts = np.zeros(len(cluster.replicas), dtype=HOST_DTYPE)
    for host, replica in zip(hosts, cluster.replicas, strict=True):
        host["total_pages"] = host["free_pages"] = host_kv_pages(cluster, replica)
        host["page_copy_s"] = page_copy_s(cluster, replica)
        host["is_tier"] = replica.has_host_prefix_cache
    return hosts


def engine_memory_arrays(
    cluster: ClusterSpec, workload: Workload, replicas: np.ndarray, nominal: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the arrays by the name of their field, of next to no size where not in use."""
    hosts, page_tokens = make_hosts(cluster), cluster.replicas[0].page_tokens
    block_pages = max(1, workload.block_tokens // page_tokens)
    tier_pages = hosts["total_pages"] * hosts["is_tier"]
    host_cache, host_table = make_cache(tier_pages, workload, block_pages)
    num_adapters = max(1, int(replicas["max_adapters"].max()))
    has_windows = bool((nominal["window_tokens"] > 0).any())
    num_growing = int(replicas["max_num_seqs"].max()) + 1 if has_windows else 1
    return {
        "hosts": hosts,
        "host_cache": host_cache,
        "host_table": host_table,
        "adapters": np.zeros((replicas.size, num_adapters), dtype=ADAPTER_DTYPE),
        "growing": np.zeros((replicas.size, num_growing), dtype=SEQUENCE_DTYPE),
    }
