"""What iterations were made of, by hand: arithmetic, reading, sending, energy, shares of time."""

from dataclasses import replace

import numpy as np
import pytest

from trimtab.env.cluster import ClusterSpec, ReplicaSpec, Role, ServerSpec
from trimtab.env.energy import clock_frac
from trimtab.env.hardware import GPUS, Precision
from trimtab.env.knobs import Knobs
from trimtab.env.latency import communication_time_s, iteration_time_s
from trimtab.env.model_profile import MODELS
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.setup import replica_coefficients
from trimtab.env.state.feature import Node
from trimtab.env.topology import links

FIRST = Knobs.of()
LLAMA, MIXTRAL = MODELS["llama-3-8b"], MODELS["mixtral-8x7b"]
H100 = GPUS["H100-80G"]


def make_one(gpu: str = "H100-80G", num_gpus: int = 1, **settings: object) -> ClusterSpec:
    """One replica on all GPUs of a server."""
    server = ServerSpec(name="s0", zone="z0", gpu=gpu, num_gpus=num_gpus)
    replica = ReplicaSpec(
        name="r0",
        server="s0",
        gpu_indices=tuple(range(num_gpus)),
        page_tokens=16,
        **({"model": "llama-3-8b", "max_batch_tokens": 2048} | settings),
    )
    return ClusterSpec(name="one", servers=(server,), replicas=(replica,))


def run_one(cluster: ClusterSpec, workload, span_s: float = 10.0) -> SimulatedFleet:
    fleet = SimulatedFleet(cluster, workload)
    fleet.reset(seed=0, knobs=FIRST)
    fleet.advance(span_s)
    return fleet


def value(fleet: SimulatedFleet, node: Node, name: str) -> float:
    """One feature of the first node of a kind."""
    return float(fleet.state().feature(node, name)[0])


def request_flops(model, inputs: int, outputs: int) -> float:
    """FLOPs of a request: every token but the last answer is computed, and each answer's head."""
    decoded = outputs - 1
    attended = sum(inputs + i for i in range(1, outputs))
    return (
        model.matmul_flops_per_token() * (inputs + decoded)
        + 2.0 * model.embedding_params * outputs
        + model.attention_flops(inputs)
        + model.attention_flops_per_pair() * attended
    )


@pytest.mark.parametrize("num_gpus", [1, 2])
def test_arithmetic_of_one_request(make_workload, num_gpus):
    fleet = run_one(make_one(num_gpus=num_gpus), make_workload([0.0], [3000], [51]))
    flops = request_flops(LLAMA, 3000, 51) / num_gpus / 10.0
    assert value(fleet, Node.GPU, "achieved_flops") == pytest.approx(flops, rel=1e-12)
    peak = H100.peak_flops[Precision.BF16]
    assert value(fleet, Node.GPU, "bf16_peak_frac") == pytest.approx(flops / peak)
    assert value(fleet, Node.GPU, "fp8_peak_frac") == 0.0
    fleet.advance(10.0)
    assert value(fleet, Node.GPU, "achieved_flops") == 0.0


def test_eight_bit_replica_keeps_attention_in_16_bits(make_workload):
    fleet = run_one(make_one(precision=Precision.FP8), make_workload([0.0], [3000], [1]))
    pairs = LLAMA.attention_flops(3000) / 10.0
    all_flops = request_flops(LLAMA, 3000, 1) / 10.0
    peaks = H100.peak_flops
    assert value(fleet, Node.GPU, "fp8_peak_frac") == pytest.approx(
        (all_flops - pairs) / peaks[Precision.FP8]
    )
    assert value(fleet, Node.GPU, "bf16_peak_frac") == pytest.approx(pairs / peaks[Precision.BF16])


def test_bytes_read_by_one_request(make_workload):
    """Each of 2 prefill and 50 decode iterations reads all weights, the latter the KV as well."""
    fleet = run_one(make_one(), make_workload([0.0], [3000], [51]))
    weights = LLAMA.dense_read_bytes(Precision.BF16)
    kv = sum(3000 + i for i in range(1, 51)) * LLAMA.kv_bytes_per_token(Precision.BF16)
    frac = (52 * weights + kv) / 10.0 / H100.hbm_bytes_per_s
    assert value(fleet, Node.GPU, "hbm_bandwidth_frac") == pytest.approx(frac, rel=1e-9)
    assert value(fleet, Node.REPLICA, "hbm_bandwidth_frac") == pytest.approx(frac, rel=1e-9)
    fleet.advance(10.0)
    trend = value(fleet, Node.GPU, "hbm_bandwidth_trend_per_s")
    assert trend == pytest.approx(-frac / 10.0)


def test_share_of_all_reduces(make_workload):
    """One prompt in one iteration over two GPUs, and nothing else."""
    cluster = make_one(num_gpus=2)
    fleet = run_one(cluster, make_workload([0.0], [1000], [1]))
    (c,) = replica_coefficients(cluster)
    expected = communication_time_s(c, 1000.0) / iteration_time_s(c, 1000, 0, 0, 0)
    assert value(fleet, Node.REPLICA, "all_reduce_wait_frac") == pytest.approx(expected, rel=1e-9)
    # A ring of two sends each of 2 x 32 sums of 1000 x 4096 values in 16 bits once.
    sent = 2 * 32 * 1000 * 4096 * 2 / 10.0
    for name in ("nvlink_tx_frac", "nvlink_rx_frac"):
        assert value(fleet, Node.GPU, name) == pytest.approx(sent / H100.nvlink_bytes_per_s)
    fabric = sum(
        link.bytes_per_s for name, link in links(cluster).items() if name.endswith("nvlink-out")
    )
    assert value(fleet, Node.LINK, "out_frac") == pytest.approx(2 * sent / fabric)


def test_without_nvlink_sums_go_over_pcie(make_workload):
    fleet = run_one(make_one("L40S-48G", 2), make_workload([0.0], [1000], [1]))
    sent = 2 * 32 * 1000 * 4096 * 2 / 10.0
    peak = GPUS["L40S-48G"].pcie_bytes_per_s
    assert value(fleet, Node.GPU, "pcie_tx_frac") == pytest.approx(sent / peak)
    assert np.isnan(value(fleet, Node.GPU, "nvlink_tx_frac"))
    assert value(fleet, Node.GPU, "nvlink_hops") == 2.0


def test_one_gpu_waits_for_nobody(make_workload):
    fleet = run_one(make_one(), make_workload([0.0], [1000], [20]))
    assert value(fleet, Node.REPLICA, "all_reduce_wait_frac") == 0.0
    assert value(fleet, Node.REPLICA, "pipeline_bubble_frac") == 0.0
    assert value(fleet, Node.REPLICA, "expert_messages_per_s") == 0.0


@pytest.mark.parametrize(("num_sequences", "bubble"), [(1, 0.75), (2, 0.5), (4, 0.0), (6, 0.0)])
def test_bubble_of_four_stages(make_workload, num_sequences, bubble):
    """A batch of fewer sequences than stages leaves stages idle."""
    workload = make_workload([0.0] * num_sequences, [16] * num_sequences, [3000] * num_sequences)
    fleet = run_one(make_one(num_gpus=4, pipeline_parallel=4), workload, 1.0)
    fleet.advance(1.0)
    assert value(fleet, Node.REPLICA, "pipeline_bubble_frac") == pytest.approx(bubble)


@pytest.mark.parametrize("expert_parallel", [1, 2])
def test_messages_to_experts(make_workload, expert_parallel):
    """Every token goes to 2 experts in each of 32 layers, half of them on the other GPU."""
    cluster = make_one(num_gpus=2, model="mixtral-8x7b", expert_parallel=expert_parallel)
    fleet = run_one(cluster, make_workload([0.0], [400], [101]))
    messages = (400 + 101) * 2 * 32 / 10.0
    assert value(fleet, Node.REPLICA, "expert_messages_per_s") == pytest.approx(messages)
    away = messages * 4096 * 2 * (1 - 1 / expert_parallel)
    assert value(fleet, Node.REPLICA, "expert_bytes_per_s") == pytest.approx(away)


def test_energy_of_a_token(make_workload):
    fleet = run_one(make_one(), make_workload([0.0], [1000], [101]))
    joules = fleet.arrays.replicas["energy_j"][0] / (1000 + 101)
    assert value(fleet, Node.GPU, "joules_per_token") == pytest.approx(joules)
    assert value(fleet, Node.ZONE, "usd_per_kwh") > 0
    fleet.advance(10.0)
    assert np.isnan(value(fleet, Node.GPU, "joules_per_token"))  # no tokens


def test_power_cap_shows_in_clock_and_throttling(make_workload):
    """Prefill draws 700 W of a GPU that may draw 300: the clock's cube falls to what is left."""
    busy = make_workload(np.arange(30) * 0.1, [8000] * 30, [1] * 30)
    free = run_one(make_one(), busy, 1.0)
    assert value(free, Node.GPU, "sm_clock_frac") == 1.0
    assert value(free, Node.GPU, "power_limit_frac") == 1.0
    assert value(free, Node.GPU, "power_throttle_frac") == 0.0
    capped = run_one(make_one(power_cap_w=300.0), busy, 1.0)
    assert value(capped, Node.GPU, "power_limit_frac") == pytest.approx(300 / 700)
    activity = value(capped, Node.GPU, "sm_activity_frac")
    assert value(capped, Node.GPU, "power_throttle_frac") == pytest.approx(activity)
    clock = clock_frac(75.0, 700.0, 300.0)
    assert value(capped, Node.GPU, "sm_clock_frac") == pytest.approx(
        1 - activity * (1 - clock), abs=0.02
    )


def test_overhead_grows_when_batches_are_small(make_workload):
    """Decoding alone on small iterations: overhead takes more, matrix products less."""
    prompts = run_one(make_one(), make_workload(np.arange(20) * 0.2, [8000] * 20, [1] * 20), 4.0)
    answers = run_one(make_one(), make_workload([0.0], [10], [4000]), 4.0)
    for_prompts, for_answers = (
        value(fleet, Node.GPU, "non_matmul_frac") for fleet in (prompts, answers)
    )
    assert 0 < for_prompts < for_answers < 1
    assert value(answers, Node.GPU, "tensor_activity_frac") < 0.05
    assert value(prompts, Node.GPU, "tensor_activity_frac") > 0.5


def test_idle_surge_when_work_goes_missing(make_workload):
    fleet = run_one(make_one(), make_workload([0.0], [10], [900]), 2.0)
    fleet.advance(2.0)
    assert value(fleet, Node.GPU, "sm_idle_surge_frac") == pytest.approx(0.0, abs=1e-6)
    fleet.drain()
    fleet.advance(2.0)
    assert value(fleet, Node.GPU, "sm_idle_surge_frac") > 0.5


def test_kv_on_the_move_shows_on_both_ends(make_cluster, make_workload):
    """A long prompt moves over the network from replica 0 to replica 1 for a good while."""
    cluster = make_cluster(["H100-80G", "A100-80G"], max_batch_tokens=8192)
    roles = (Role.PREFILL, Role.DECODE)
    replicas = tuple(replace(r, role=x) for r, x in zip(cluster.replicas, roles, strict=True))
    slow = tuple(replace(server, network_bytes_per_s=1e9) for server in cluster.servers)
    cluster = replace(cluster, replicas=replicas, servers=slow)
    fleet = run_one(cluster, make_workload([0.0], [8000], [20]), 0.7)
    state, rate = fleet.state(), 0.87e9
    assert (fleet.arrays.transfers["has_begun"][0], fleet.arrays.fleet["num_transfers"][0]) == (
        1,
        1,
    )

    def both(node: Node, name: str) -> list[float]:
        return pytest.approx([float(x) for x in state.feature(node, name)])

    assert both(Node.REPLICA, "kv_out_bytes_per_s") == [rate, 0]
    assert both(Node.REPLICA, "kv_in_bytes_per_s") == [0, rate]
    assert both(Node.REPLICA, "moving_requests") == [0, 1]
    assert both(Node.SERVER, "network_tx_frac") == [0.87, 0]
    assert both(Node.SERVER, "network_rx_frac") == [0, 0.87]
    assert both(Node.SERVER, "rdma_bytes_per_s") == [rate, rate]
    assert both(Node.FLEET, "network_frac") == [0.435]
    assert both(Node.GPU, "pcie_tx_frac") == [rate / H100.pcie_bytes_per_s, 0]
    assert both(Node.GPU, "pcie_rx_frac") == [0, rate / GPUS["A100-80G"].pcie_bytes_per_s]
    # NVLink, PCIe and network of the first server, then of the second.
    assert both(Node.LINK, "transfers") == [0, 1, 1, 0, 1, 1]
    assert both(Node.LINK, "out_frac") == [0, rate / (0.78 * 64e9), 1, 0, 0, 0]
