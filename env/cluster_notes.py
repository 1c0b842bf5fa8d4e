"""What is odd about a cluster, though it can run.

Does not know: files; what cannot run is a fault (`cluster.py`).
"""

from collections.abc import Iterator

from .cluster import ClusterSpec, ReplicaSpec


def cluster_notes(cluster: ClusterSpec) -> tuple[str, ...]:
    """One sentence for each oddity; equal replicas share theirs."""
    return tuple(
        dict.fromkeys(note for replica in cluster.replicas for note in _notes(cluster, replica))
    )


def _notes(cluster: ClusterSpec, replica: ReplicaSpec) -> Iterator[str]:
    model = cluster.model_of(replica)
    batch = model.recommended_batch
    if batch is not None and not batch.min <= replica.max_num_seqs <= batch.max:
        yield (
            f"replicas of {model.key!r} have max_num_seqs {replica.max_num_seqs}, its makers "
            f"recommend {batch.min} to {batch.max}; their latency may differ from the profile"
        )
