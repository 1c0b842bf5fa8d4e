"""What is known of a server before anything is measured."""

import pytest

from trimtab.env.cluster import ClusterSpec, ReplicaSpec, ServerSpec
from trimtab.env.hardware import GPUS
from trimtab.runtime.telemetry.features.server_facts import (
    ServerFacts,
    facts_of_cluster,
    facts_of_driver,
)

H100 = GPUS["H100-80G"]


def test_facts_come_from_a_cluster_file_or_from_the_driver() -> None:
    server = ServerSpec(name="a", zone="z", gpu="H100-80G", num_gpus=2)
    replica = ReplicaSpec(name="r", server="a", model="llama-3-8b", gpu_indices=(1,))
    cluster = ClusterSpec(name="c", servers=(server,), replicas=(replica,))
    (facts,) = facts_of_cluster(cluster, ["a"])
    assert facts.gpus == (H100, H100)
    assert facts.replicas == (replica,)
    assert facts.network_bytes_per_s == 25e9
    named = facts_of_driver("b", ["NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 9090"])
    assert named.gpus == (H100, None)
    with pytest.raises(ValueError, match="has no server 'b'"):
        facts_of_cluster(cluster, ["b"])


def test_a_replica_on_a_gpu_that_is_not_there_is_refused() -> None:
    replica = ReplicaSpec(name="r", server="a", model="llama-3-8b", gpu_indices=(0, 1))
    with pytest.raises(ValueError, match="needs GPU 1, but server 'a' has 1"):
        ServerFacts(name="a", gpus=(H100,), replicas=(replica,))
