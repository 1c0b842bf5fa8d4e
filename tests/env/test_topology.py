"""Links of a cluster and paths over them."""

from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.env.cluster import ClusterSpec, ReplicaSpec, Role, ServerSpec, Sharing, kv_pages
from trimtab.env.cluster_file import load_cluster
from trimtab.env.simulator.setup import replica_coefficients
from trimtab.env.topology import Crossing, WeightSource, links, path, storage_path
from trimtab.traces.errors import ConfigError


def make_replica(server: str, *gpus: int, **fields: object) -> ReplicaSpec:
    name = f"{server}:{gpus}:{sorted(fields.items(), key=str)}"
    return ReplicaSpec(name=name, server=server, model="llama-3-8b", gpu_indices=gpus, **fields)


@pytest.fixture(scope="module")
def cluster() -> ClusterSpec:
    """Two H100 servers and one of L40S in one zone, one of A100 in another."""
    return ClusterSpec(
        name="made",
        servers=(
            ServerSpec(name="h0", zone="a", gpu="H100-80G", num_gpus=8, gpus_per_pcie_root=2),
            ServerSpec(name="h1", zone="a", gpu="H100-80G", num_gpus=8),
            ServerSpec(name="l0", zone="a", gpu="L40S-48G", num_gpus=2),
            ServerSpec(name="a0", zone="b", gpu="A100-80G", num_gpus=1, network_latency_s=1e-4),
        ),
        replicas=(
            make_replica("h0", 0),
            make_replica("h0", 1),
            make_replica("h0", 4, 5, 6, 7),
            make_replica("h1", 3),
            make_replica("l0", 0),
            make_replica("l0", 1),
            make_replica("a0", 0, gpu_frac=0.5),
            make_replica("a0", 0, gpu_frac=0.5, page_tokens=16),
        ),
        inter_zone_bytes_per_s=5e9,
        inter_zone_latency_s=2e-3,
    )


def crossings(*pairs: tuple[str, float]) -> list[Crossing]:
    return [Crossing(link=link, share=share) for link, share in pairs]


def test_bandwidths_are_what_transfers_reach(cluster: ClusterSpec) -> None:
    found = links(cluster)
    # 200 Gb/s are 25 GB/s; 64 GB/s of PCIe gen 5; 450 GB/s of NVLink 4; a usual loader
    assert found["h0/uplink"].bytes_per_s == pytest.approx(0.87 * 25e9)
    assert found["h0/gpu-2/pcie-in"].bytes_per_s == pytest.approx(0.78 * 64e9)
    assert found["h0/gpu-7/nvlink-out"].bytes_per_s == pytest.approx(0.75 * 450e9)
    assert found["a0/disk"].bytes_per_s == 1.7e9
    assert found["a>b"].bytes_per_s == 5e9
    assert found["b>a"].latency_s == 2e-3
    assert found["h0/uplink"].latency_s == 50e-6
    assert found["a0/uplink"].latency_s == 1e-4
    assert "l0/gpu-0/nvlink-out" not in found
    assert "h0/gpu-1/pcie-in" not in found, "GPU 1 shares the lanes of GPU 0"


def test_paths(cluster: ClusterSpec) -> None:
    assert path(cluster, 0, 1) == crossings(
        ("h0/gpu-0/nvlink-out", 1.0), ("h0/gpu-1/nvlink-in", 1.0)
    )
    assert path(cluster, 4, 5) == crossings(("l0/gpu-0/pcie-out", 1.0), ("l0/gpu-1/pcie-in", 1.0))
    # Four GPUs on two pairs of lanes: half of the bytes cross the first pair's.
    assert path(cluster, 2, 3) == crossings(
        ("h0/gpu-4/pcie-out", 0.5),
        ("h0/uplink", 1.0),
        ("h1/downlink", 1.0),
        ("h1/gpu-3/pcie-in", 1.0),
    )
    assert [crossing.link for crossing in path(cluster, 6, 1)] == [
        "a0/gpu-0/pcie-out",
        "a0/uplink",
        "b>a",
        "h0/downlink",
        "h0/gpu-0/pcie-in",
    ]
    assert path(cluster, 6, 7) == [], "both hold the same GPU"


def test_storage_paths(cluster: ClusterSpec) -> None:
    lanes = ("h0/gpu-4/pcie-in", 0.5)
    assert storage_path(cluster, 2) == crossings(("h0/disk", 1.0), lanes)
    assert storage_path(cluster, 2, WeightSource.PAGE_CACHE) == crossings(lanes)
    assert storage_path(cluster, 2, WeightSource.NETWORK) == crossings(("h0/downlink", 1.0), lanes)


def test_a_share_has_its_part_of_memory_and_speed(cluster: ClusterSpec) -> None:
    whole = make_replica("h0", 0)
    half = replace(whole, gpu_frac=0.5)
    by_turns = replace(half, sharing=Sharing.TIME_SLICED)
    tables = [
        replica_coefficients(replace(cluster, replicas=(replica,)))[0]
        for replica in (whole, half, by_turns)
    ]
    for name in ("weight_s", "token_s", "prefill_attention_s", "decode_context_s"):
        assert tables[1][name] == pytest.approx(2.0 * tables[0][name])
        assert tables[2][name] == tables[0][name]
    for name in ("step_s", "request_s", "expert_miss_frac", "roofline_power"):
        assert tables[1][name] == tables[0][name]
    # 80 GiB x 0.9 less 3.5 GiB and 16.06 GB of weights, in pages of 2 MiB
    assert kv_pages(cluster, half) == int(
        (80 * 2**30 * 0.5 * 0.9 - 3.5 * 2**30 - 8_030_261_248 * 2) // 2**21
    )
    assert kv_pages(cluster, half) == kv_pages(cluster, by_turns) < kv_pages(cluster, whole) / 2


@pytest.mark.parametrize(
    ("replicas", "fault"),
    [
        (
            [{"gpu_frac": 0.6}, {"gpu_frac": 0.6, "max_num_seqs": 8}],
            r"GPUs \[0\] are held by more than one replica with gpu_frac 1.2 together",
        ),
        ([{"gpu_frac": 0.0}], "gpu_frac: must be above 0 and at most 1, got 0.0"),
        ([{"role": Role.PREFILL}], "role: is 'prefill', but no replica of model 'llama-3-8b'"),
        ([{"role": Role.DECODE}], "role: is 'decode', but no replica of .* is 'prefill' or 'both'"),
    ],
)
def test_faulty_specs(replicas: list[dict[str, object]], fault: str) -> None:
    server = ServerSpec(name="s0", zone="z", gpu="H100-80G", num_gpus=2)
    with pytest.raises(ConfigError, match=fault):
        ClusterSpec(
            name="made",
            servers=(server,),
            replicas=tuple(make_replica("s0", 0, **fields) for fields in replicas),
        )


def test_thirds_of_a_gpu_fill_it() -> None:
    server = ServerSpec(name="s0", zone="z", gpu="B200-180G", num_gpus=1)
    thirds = tuple(
        make_replica("s0", 0, gpu_frac=1 / 3, max_num_seqs=64 + i, page_tokens=16) for i in range(3)
    )
    assert len(ClusterSpec(name="made", servers=(server,), replicas=thirds).replicas) == 3


def write(folder: Path, *replicas: str, top: str = "") -> Path:
    file = folder / "fleet.yaml"
    servers = "  - {name: s0, gpu: H100-80G, num_gpus: 4, zone: z0, disk_gigabytes_per_s: 6.0}"
    lines = ["name: fleet", top, "servers:", servers, "replicas:"]
    file.write_text("\n".join([*lines, *(f"  - {replica}" for replica in replicas), ""]))
    return file


def test_a_file_may_name_gpus(tmp_path: Path) -> None:
    half = "{server: s0, model: llama-3-8b, gpus: [1], gpu_frac: 0.5, sharing: time_sliced"
    standby = "gpus: [3, 0], initial_state: stopped, engine_init_s: 14.0}"
    file = write(
        tmp_path,
        f"{half}, count: 2}}",
        "{server: s0, model: llama-3-8b}",
        f"{{server: s0, model: llama-3-8b, {standby}",
        top="inter_zone_gbps: 80",
    )
    cluster = load_cluster(file)
    assert [replica.gpu_indices for replica in cluster.replicas] == [(1,), (1,), (2,), (3, 0)]
    assert cluster.replicas[0].sharing is Sharing.TIME_SLICED
    assert cluster.replicas[3].initial_state == "stopped"
    assert cluster.replicas[3].engine_init_s == 14.0
    assert cluster.inter_zone_bytes_per_s == 10e9
    assert cluster.servers[0].disk_bytes_per_s == 6e9


@pytest.mark.parametrize(
    ("replica", "fault"),
    [
        ("{server: s0, model: llama-3-8b, gpus: [1, 1]}", r"replicas\[0\].gpus: must differ"),
        (
            "{server: s0, model: llama-3-8b, gpus: [0, 1], tensor_parallel: 4}",
            r"replicas\[0\].tensor_parallel: is 4, but gpus names 2",
        ),
        ("{server: s0, model: llama-3-8b, role: both_}", r"replicas\[0\].role: .*'prefill'"),
        ("{server: s0, model: llama-3-8b, gpu_frac: 1.5}", r"replicas\[0\].gpu_frac: .*1.5"),
        ("{server: s0, model: llama-3-8b, initial_sate: stopped}", "did you mean 'initial_state'"),
    ],
)
def test_faults_of_a_file_name_their_key(tmp_path: Path, replica: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        load_cluster(write(tmp_path, replica))
