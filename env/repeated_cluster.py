"""A large cluster as copies of a small one.

Does not know: what runs on it.
"""

from dataclasses import replace

from .cluster import ClusterSpec


def repeated_cluster(cluster: ClusterSpec, times: int) -> ClusterSpec:
    """Return a cluster of so many copies of another, with names of their own."""
    if times < 1:
        msg = f"times must be at least 1, got {times}"
        raise ValueError(msg)
    return replace(
        cluster,
        name=f"{cluster.name}-x{times}",
        servers=tuple(
            replace(one, name=f"{one.name}-{i}") for i in range(times) for one in cluster.servers
        ),
        replicas=tuple(
            replace(one, name=f"{one.name}-{i}", server=f"{one.server}-{i}")
            for i in range(times)
            for one in cluster.replicas
        ),
    )
