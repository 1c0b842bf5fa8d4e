"""Cluster files: bundled ones load, GPUs are handed out in order, all faults come at once."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.env.cluster import (
    OTHER_BYTES_PER_GPU,
    ClusterSpec,
    Preemption,
    ReplicaSpec,
    ServerSpec,
    host_kv_pages,
    kv_pages,
)
from trimtab.env.cluster_file import bundled_cluster_names, load_cluster
from trimtab.env.hardware import GIB, GPUS, Precision
from trimtab.env.model_profile import MODELS
from trimtab.env.roofline import latency_coefficients
from trimtab.env.speculation import Speculation
from trimtab.traces.errors import ConfigError

SERVER = "{name: s0, gpu: H100-80G, num_gpus: 8, zone: z0}"


def write_cluster(folder: Path, *, servers: list[str], replicas: list[str]) -> Path:
    path = folder / "fleet.yaml"
    lines = ["name: fleet", "servers:", *(f"  - {entry}" for entry in servers), "replicas:"]
    path.write_text("\n".join([*lines, *(f"  - {entry}" for entry in replicas), ""]))
    return path


def faults_of(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_cluster(path)
    return str(caught.value)


def make_server(name: str = "s0", gpu: str = "A100-80G", num_gpus: int = 8) -> ServerSpec:
    return ServerSpec(name=name, zone="z0", gpu=gpu, num_gpus=num_gpus)


def make_replica(
    name: str = "r0",
    server: str = "s0",
    model: str = "llama-3-8b",
    gpu_indices: tuple[int, ...] = (0,),
) -> ReplicaSpec:
    return ReplicaSpec(name=name, server=server, model=model, gpu_indices=gpu_indices)


def make_cluster(servers: list[ServerSpec], replicas: list[ReplicaSpec]) -> ClusterSpec:
    return ClusterSpec(name="made", servers=tuple(servers), replicas=tuple(replicas))


def test_bundled_names() -> None:
    assert {"demo-16", "homogeneous-16", "mixed-models"} <= set(bundled_cluster_names())


@pytest.mark.parametrize("name", bundled_cluster_names())
def test_bundled_cluster_is_sane(name: str) -> None:
    cluster = load_cluster(name)
    assert cluster.name == name
    held = [(r.server, index) for r in cluster.replicas for index in r.gpu_indices]
    assert len(set(held)) == sum(server.num_gpus for server in cluster.servers)
    for server, index in held:
        shares = [
            r.gpu_frac for r in cluster.replicas if r.server == server and index in r.gpu_indices
        ]
        assert sum(shares) == pytest.approx(1.0)
    for replica in cluster.replicas:
        server = cluster.server_of(replica)
        assert cluster.gpu_of(replica) is GPUS[server.gpu]
        assert cluster.model_of(replica) is MODELS[replica.model]
        # a prompt of 8k tokens and a full batch fit
        assert kv_pages(cluster, replica) * replica.page_tokens > 8192 + replica.max_batch_tokens
        table = latency_coefficients(
            cluster.gpu_of(replica),
            cluster.model_of(replica),
            tensor_parallel=replica.tensor_parallel,
            precision=replica.precision,
        )
        assert table.shape == (1,)


def test_demo_is_the_documented_mix() -> None:
    cluster = load_cluster("demo-16")
    assert [server.gpu for server in cluster.servers] == [
        "A100-80G",
        "A100-80G",
        "H100-80G",
        "L40S-48G",
    ]
    assert {server.zone for server in cluster.servers} == {"zone-a", "zone-b"}
    assert len(cluster.replicas) == 16
    budgets = {cluster.gpu_of(r).name: r.max_batch_tokens for r in cluster.replicas}
    assert budgets == {"A100-80G": 512, "H100-80G": 1024, "L40S-48G": 512}
    assert cluster.replicas[10].name == "h100-0/llama-3-8b-2"
    assert cluster.replicas[10].gpu_indices == (2,)


def test_mixed_models_hold_gpus_in_order() -> None:
    cluster = load_cluster("mixed-models")
    assert [(r.name, r.gpu_indices, r.tensor_parallel) for r in cluster.replicas] == [
        ("h100-0/llama-3-70b-0", (0, 1, 2, 3), 4),
        ("h100-0/qwen-2.5-32b-0", (4, 5), 2),
        ("h100-0/mixtral-8x7b-0", (6, 7), 2),
    ]


def test_defaults_and_units(tmp_path: Path) -> None:
    cluster = load_cluster(
        write_cluster(
            tmp_path,
            servers=["{name: s0, gpu: H100-80G, num_gpus: 2, zone: z0, network_gbps: 400}"],
            replicas=["{server: s0, model: llama-3-8b}"],
        )
    )
    assert cluster.servers[0].network_bytes_per_s == 50e9
    replica = cluster.replicas[0]
    assert replica.precision is Precision.BF16
    assert (replica.max_num_seqs, replica.max_batch_tokens) == (256, 512)
    assert (replica.kv_memory_frac, replica.page_tokens) == (0.9, 16)
    assert (replica.kv_blocks, replica.preemption) == (None, Preemption.RECOMPUTE)
    assert (replica.host_kv_bytes, replica.has_host_prefix_cache) == (0.0, False)
    assert (replica.max_loras, replica.kv_watermark_frac) == (0, 0.01)


def test_a_server_without_gpus_can_be_kept_for_emergencies(tmp_path: Path) -> None:
    servers = [SERVER, "{name: cpu-0, gpu: XEON8480-256G, num_gpus: 2, zone: z0}"]
    replicas = [
        "{server: s0, model: llama-3-8b, count: 2}",
        "{server: cpu-0, model: llama-3-8b, is_spill: true}",
        "{server: cpu-0, model: llama-3.2-1b, is_spill: true}",
    ]
    cluster = load_cluster(write_cluster(tmp_path, servers=servers, replicas=replicas))
    assert [replica.is_spill for replica in cluster.replicas] == [False, False, True, True]
    # 230 GiB for engine and weights leave room for more than a million tokens of 131,072 bytes.
    assert kv_pages(cluster, cluster.replicas[2]) * 16 > 1e6


def test_engine_memory_of_a_file(tmp_path: Path) -> None:
    text = (
        "{server: s0, model: llama-3-8b, kv_blocks: 27000, preemption: swap, host_kv_gb: 40, "
        "has_host_prefix_cache: true, max_loras: 4, adapter_mb: 50, kv_watermark_frac: 0}"
    )
    cluster = load_cluster(write_cluster(tmp_path, servers=[SERVER], replicas=[text]))
    (replica,) = cluster.replicas
    assert kv_pages(cluster, replica) == 27000
    assert replica.preemption is Preemption.SWAP
    # 40 GB in pages of 16 tokens of 128 KiB.
    assert host_kv_pages(cluster, replica) == 40e9 // 2**21
    assert (replica.max_loras, replica.adapter_bytes) == (4, 50e6)
    assert (replica.has_host_prefix_cache, replica.kv_watermark_frac) == (True, 0.0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("kv_blocks: 0", r"replicas\[0\].kv_blocks: .*greater than or equal to 1, got 0"),
        ("preemption: swop", r"replicas\[0\].preemption: .*'recompute' or 'swap', got 'swop'"),
        ("preemption: swap", r"replicas\[0\].preemption: 'swap' needs host memory.*host_kv_gb"),
        ("has_host_prefix_cache: true", r"has_host_prefix_cache: needs host memory, got none"),
        ("host_kv_gbs: 4", r"host_kv_gbs: unknown key.*did you mean 'host_kv_gb'"),
        ("max_loras: -1", r"max_loras: .*greater than or equal to 0, got -1"),
    ],
)
def test_faults_of_engine_memory(tmp_path: Path, setting: str, message: str) -> None:
    replicas = [f"{{server: s0, model: llama-3-8b, {setting}}}"]
    text = faults_of(write_cluster(tmp_path, servers=[SERVER], replicas=replicas))
    assert re.search(message, text), text


def test_faults_of_engine_memory_in_specs() -> None:
    for changes, message in (
        ({"kv_blocks": 0}, "kv_blocks: must be at least 1, got 0"),
        ({"host_kv_bytes": -1.0}, "host_kv_bytes: must be at least 0, got -1.0"),
        ({"kv_watermark_frac": 1.0}, r"kv_watermark_frac: must be in \[0, 1\), got 1.0"),
        ({"max_loras": -2}, "max_loras: must be at least 0, got -2"),
        ({"adapter_bytes": 0.0}, "adapter_bytes: must be above 0, got 0.0"),
        ({"preemption": Preemption.SWAP}, "preemption: 'swap' needs host memory"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_cluster([make_server()], [replace(make_replica(), **changes)])


def test_blocks_of_the_engine_stand_where_none_would_fit() -> None:
    """The engine knows its memory better than the estimate of what is not for KV."""
    replica = replace(make_replica(model="llama-3-70b"), kv_blocks=5)
    assert kv_pages(make_cluster([make_server()], [replica]), replica) == 5


def test_entries_of_one_model_are_numbered_on(tmp_path: Path) -> None:
    path = write_cluster(
        tmp_path,
        servers=[SERVER],
        replicas=[
            "{server: s0, model: llama-3-8b, count: 2}",
            "{server: s0, model: qwen-2.5-32b, tensor_parallel: 2, precision: fp8}",
            "{server: s0, model: llama-3-8b, max_batch_tokens: 1024}",
        ],
    )
    assert [(r.name, r.gpu_indices) for r in load_cluster(str(path)).replicas] == [
        ("s0/llama-3-8b-0", (0,)),
        ("s0/llama-3-8b-1", (1,)),
        ("s0/qwen-2.5-32b-0", (2, 3)),
        ("s0/llama-3-8b-2", (4,)),
    ]


def test_kv_pages_by_hand() -> None:
    cluster = make_cluster([make_server()], [make_replica()])
    free_bytes = 80 * GIB * 0.9 - 3.5 * GIB - 2 * 8_030_261_248
    assert OTHER_BYTES_PER_GPU == 3.5 * GIB
    assert kv_pages(cluster, cluster.replicas[0]) == math.floor(free_bytes / (131_072 * 16))


def test_kv_pages_of_a_group_and_of_eight_bit_weights() -> None:
    group = replace(make_replica(model="llama-3-70b"), gpu_indices=(0, 1, 2, 3))
    cluster = make_cluster([make_server(gpu="H100-80G")], [group])
    free_bytes = 4 * (80 * GIB * 0.9 - 3.5 * GIB) - 2 * 70_553_706_496
    assert kv_pages(cluster, group) == math.floor(free_bytes / (327_680 * 16))
    narrow = replace(group, precision=Precision.FP8)
    # half the weights, the cache still in 16 bits
    free_bytes += 70_553_706_496
    assert kv_pages(cluster, narrow) == math.floor(free_bytes / (327_680 * 16))


@given(st.floats(0.35, 0.99), st.integers(1, 256), st.sampled_from(["H100-80G", "A100-80G"]))
def test_kv_pages_fit_the_memory(kv_memory_frac: float, page_tokens: int, gpu: str) -> None:
    replica = replace(make_replica(), kv_memory_frac=kv_memory_frac, page_tokens=page_tokens)
    cluster = make_cluster([make_server(gpu=gpu)], [replica])
    pages = kv_pages(cluster, replica)
    kv_bytes = 131_072 * page_tokens
    rest_bytes = MODELS["llama-3-8b"].weight_bytes(Precision.BF16) + OTHER_BYTES_PER_GPU
    assert pages >= 1
    assert pages * kv_bytes + rest_bytes <= kv_memory_frac * 80 * GIB + 1
    assert (pages + 1) * kv_bytes + rest_bytes > kv_memory_frac * 80 * GIB - 1


def test_all_faults_of_a_file_come_at_once(tmp_path: Path) -> None:
    text = faults_of(
        write_cluster(
            tmp_path,
            servers=[
                "{name: s0, gpu: H100, num_gpus: 8, zone: z0}",
                "{name: s1, gpu: A100-80G, num_gpu: 8, zone: z0}",
                "{name: s2, gpu: A100-40G, num_gpus: 2, zone: z0}",
            ],
            replicas=[
                "{server: s0, model: llama-8b}",
                "{server: s2, model: llama-3-8b, count: 0}",
                "{server: s2, model: llama-3-8b, precision: fp9}",
                "{server: s2, model: llama-3-8b, max_batch_token: 64}",
                "{server: s2, model: qwen-2.5-32b}",
            ],
        )
    )
    assert "has 8 fault(s):" in text
    assert "servers[0].gpu: unknown GPU 'H100'; did you mean 'H100-80G'?" in text
    assert "servers[1].num_gpus: key is missing; add it" in text
    assert "servers[1].num_gpu: unknown key with value 8; did you mean 'num_gpus'?" in text
    assert "replicas[0].model: unknown model 'llama-8b'; did you mean 'llama-3-8b'?" in text
    assert "replicas[1].count: Input should be greater than or equal to 1, got 0" in text
    assert "replicas[2].precision: Input should be 'fp16', 'bf16', 'fp8' or 'int8', got" in text
    assert "replicas[3].max_batch_token: unknown key with value 64; did you mean" in text
    assert "replicas[4].model: 'qwen-2.5-32b' with 65.5 GB of bf16 weights does not fit" in text


def test_a_faulty_server_does_not_make_its_replicas_homeless(tmp_path: Path) -> None:
    text = faults_of(
        write_cluster(
            tmp_path,
            servers=["{name: s0, gpu: H100-80G, num_gpus: many, zone: z0}"],
            replicas=["{server: s0, model: llama-3-8b}"],
        )
    )
    assert "has 1 fault(s):" in text
    assert "servers[0].num_gpus: Input should be a valid integer, got 'many'" in text


def test_stages_experts_and_drafts(tmp_path: Path) -> None:
    entry = (
        "{server: s0, model: qwen3-30b-a3b, tensor_parallel: 2, pipeline_parallel: 2, "
        "expert_parallel: 2, speculative: {draft_tokens: 3, acceptance: 0.7}}"
    )
    cluster = load_cluster(write_cluster(tmp_path, servers=[SERVER], replicas=[entry, entry]))
    replica = cluster.replicas[1]
    assert replica.gpu_indices == (4, 5, 6, 7)
    assert (replica.num_gpus, replica.tensor_parallel) == (4, 2)
    assert replica.speculation == Speculation(draft_tokens=3, acceptance=0.7)
    # four GPUs' memory for KV, every token on the two of its stage
    pages = kv_pages(cluster, replica)
    free = 4 * (80 * GIB * 0.9 - 3.5 * GIB) - 2 * 30_532_122_624
    assert pages == int(free // (48 * 2 * 4 * 128 * 2 * 16))


def test_stages_that_do_not_divide_the_gpus() -> None:
    replica = replace(make_replica(), gpu_indices=(0, 1, 2), pipeline_parallel=2)
    with pytest.raises(ConfigError, match="pipeline_parallel: 2 does not divide 3 GPUs"):
        make_cluster([make_server()], [replica])


def test_unknown_server_names_the_nearest(tmp_path: Path) -> None:
    path = write_cluster(
        tmp_path,
        servers=["{name: h100-0, gpu: H100-80G, num_gpus: 8, zone: z0}"],
        replicas=["{server: h100-1, model: llama-3-8b, count: 3}"],
    )
    text = faults_of(path)
    assert "replicas[0].server: unknown server 'h100-1'; did you mean 'h100-0'?" in text
    assert "has 1 fault(s):" in text


def test_more_gpus_than_the_server_has(tmp_path: Path) -> None:
    path = write_cluster(
        tmp_path,
        servers=[SERVER],
        replicas=[
            "{server: s0, model: llama-3-70b, tensor_parallel: 4}",
            "{server: s0, model: llama-3-8b, count: 6}",
        ],
    )
    with pytest.raises(ConfigError, match=r"'s0': num_gpus is 8, .* take 10 \(GPUs 0 to 9\)"):
        load_cluster(path)


def test_weights_that_do_not_fit_say_by_how_much(tmp_path: Path) -> None:
    path = write_cluster(
        tmp_path, servers=[SERVER], replicas=["{server: s0, model: llama-3-70b, count: 4}"]
    )
    page_bytes = 327_680 * 16
    missing_gb = (2 * 70_553_706_496 + page_bytes - 80 * GIB * 0.9 + 3.5 * GIB) / 1e9
    text = faults_of(path)
    assert f"does not fit 1 x H100-80G on server 's0' by {missing_gb:.1f} GB" in text
    # four equal replicas are one fault
    assert "has 1 fault(s):" in text


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ("{server: s0, model: qwen-2.5-32b, tensor_parallel: 3}", "tensor_parallel: 3 does not"),
        ("{server: s0, model: llama-3-8b, tensor_parallel: 0}", r"tensor_parallel: .*, got 0"),
        ("{server: s0, model: llama-3-8b, kv_memory_frac: 1.5}", r"kv_memory_frac: .*, got 1.5"),
        ("{server: s0, model: llama-3-8b, max_num_seqs: '9'}", r"max_num_seqs: .*, got '9'"),
        ("{server: s0, model: llama-3-8b, page_tokens: true}", r"page_tokens: .*, got True"),
        ("{server: 5, model: llama-3-8b}", r"server: .*valid string, got 5"),
        ("{model: llama-3-8b}", "server: key is missing"),
        ("{server: s0, model: llama-3-8b, expert_parallel: 2}", "expert_parallel: .* without exp"),
        ("{server: s0, model: llama-3-8b, pipeline_parallel: 0}", "pipeline_parallel: .*got 0"),
        ("{server: s0, model: llama-3-8b, speculative: {acceptance: 2}}", "speculative.draft_tok"),
    ],
)
def test_a_faulty_replica_entry(tmp_path: Path, entry: str, fault: str) -> None:
    path = write_cluster(tmp_path, servers=[SERVER], replicas=[entry])
    with pytest.raises(ConfigError, match=rf"replicas\[0\]\.{fault}"):
        load_cluster(path)


def test_precision_that_the_gpu_lacks(tmp_path: Path) -> None:
    path = write_cluster(
        tmp_path,
        servers=["{name: s0, gpu: A100-80G, num_gpus: 1, zone: z0}"],
        replicas=["{server: s0, model: llama-3-8b, precision: fp8}"],
    )
    with pytest.raises(ConfigError, match=r"precision: 'A100-80G' has no 'fp8'.*fp16, bf16, int8"):
        load_cluster(path)


def test_server_names_are_unique(tmp_path: Path) -> None:
    path = write_cluster(
        tmp_path, servers=[SERVER, SERVER], replicas=["{server: s0, model: llama-3-8b}"]
    )
    with pytest.raises(ConfigError, match="server name 's0' is used 2 times; names must be unique"):
        load_cluster(path)


@pytest.mark.parametrize("speed", ["0", "-1", ".inf", ".nan", "fast"])
def test_network_speed_is_finite_and_positive(tmp_path: Path, speed: str) -> None:
    server = f"{{name: s0, gpu: H100-80G, num_gpus: 1, zone: z0, network_gbps: {speed}}}"
    path = write_cluster(tmp_path, servers=[server], replicas=["{server: s0, model: llama-3-8b}"])
    with pytest.raises(ConfigError, match=r"servers\[0\]\.network_gbps: Input should be"):
        load_cluster(path)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "file: must be a mapping of name, servers, replicas, models, .*, got None"),
        ("[1, 2]", r"file: must be a mapping of .*, got \[1, 2\]"),
        ("name: x\nservers: []\nreplicas: []", r"servers: List should have at least 1 item.*\[\]"),
        (
            "name: x\nserver: 3\nservers: [1]\nreplicas: [2]",
            "server: unknown key with value 3; did",
        ),
        ("name: x\nservers: [1]\nreplicas: [2]", r"servers\[0\]: must be a mapping.*, got 1"),
        ("name: [unclosed", r"cannot be read as YAML: .*"),
    ],
)
def test_a_faulty_file(tmp_path: Path, content: str, fault: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=fault):
        load_cluster(path)


def test_unknown_cluster_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown cluster 'demo-61'; did you mean 'demo-16'"):
        load_cluster("demo-61")
    with pytest.raises(ConfigError, match=r"unknown cluster 'no/such.yaml'.*path of a YAML file"):
        load_cluster("no/such.yaml")


def test_specs_made_by_hand_are_checked_as_well() -> None:
    replicas = [
        make_replica("r0"),
        make_replica("r1"),
        make_replica("r2", server="s9"),
        make_replica("r3", model="llama-9"),
        make_replica("r4", gpu_indices=()),
    ]
    with pytest.raises(ConfigError) as caught:
        make_cluster([make_server(), make_server("s1", gpu="H1000")], replicas)
    text = str(caught.value)
    assert "cluster 'made' has 5 fault(s):" in text
    assert "server 's1': unknown GPU 'H1000'" in text
    assert "server 's0': GPUs [0] are held by more than one replica" in text
    assert "replica 'r2'.server: unknown server 's9'" in text
    assert "replica 'r3'.model: unknown model 'llama-9'" in text
    assert "replica 'r4'.tensor_parallel: 0 does not divide" in text


def test_a_foreign_replica_has_no_server() -> None:
    cluster = make_cluster([make_server()], [make_replica()])
    with pytest.raises(ValueError, match="unknown server 'elsewhere'; known: s0"):
        cluster.server_of(make_replica(server="elsewhere"))
