"""Raw signals to features: which are derived, and known answers worked out by hand."""

from collections.abc import Mapping

import numpy as np
import pytest

from trimtab.env.cluster import ReplicaSpec
from trimtab.env.hardware import GPUS, Precision
from trimtab.env.model_profile import model
from trimtab.env.state.feature import FloatArray, Live, Node
from trimtab.env.state.registry import FEATURES_BY_NODE, column
from trimtab.runtime.telemetry.derivation import NODES, NOT_DERIVED, Derivation
from trimtab.runtime.telemetry.features.nominal_times import nominal_times
from trimtab.runtime.telemetry.features.rack_constants import rack_constants
from trimtab.runtime.telemetry.features.server_facts import ServerFacts
from trimtab.runtime.telemetry.raw_window import RawArray, RawWindow
from trimtab.runtime.telemetry.signals import SIGNALS_BY_SCOPE, Kind, Scope, signal_index

H100 = GPUS["H100-80G"]
Given = Mapping[tuple[Scope, str], float]


def make_server(*precisions: Precision, num_gpus: int = 4, tensor_parallel: int = 1) -> ServerFacts:
    replicas = tuple(
        ReplicaSpec(
            name=f"replica-{r}",
            server="server-0",
            model="llama-3-8b",
            gpu_indices=tuple(range(r * tensor_parallel, (r + 1) * tensor_parallel)),
            precision=precision,
        )
        for r, precision in enumerate(precisions)
    )
    return ServerFacts(
        name="server-0",
        gpus=(H100,) * num_gpus,
        replicas=replicas,
        network_bytes_per_s=25e9,
        network_latency_s=50e-6,
        disk_bytes_per_s=2e9,
    )


def make_block(scope: Scope, shape: tuple[int, int], given: Given, fill: float) -> RawArray:
    block = np.full((*shape, len(SIGNALS_BY_SCOPE[scope])), fill, dtype=np.float32)
    for (of, name), value in given.items():
        if of is scope:
            block[..., signal_index(scope, name)] = value
    return block


class Rack:
    """Feeds a derivation samples at moments, all servers and entities alike."""

    def __init__(self, *servers: ServerFacts, fill: float = np.nan) -> None:
        self.constants = rack_constants(servers)
        self.derivation = Derivation(self.constants)
        self._shapes = {
            Scope.SERVER: (len(servers), 1),
            Scope.GPU: self.constants.gpus.tdp_watts.shape,
            Scope.REPLICA: self.constants.replicas.max_num_seqs.shape,
        }
        self._fill = fill
        self._before = {s: make_block(s, self._shapes[s], {}, np.nan) for s in Scope}
        self._before_s = np.nan

    def sample(self, at_s: float, given: Given, most: Given | None = None) -> "Rack":
        blocks = {s: make_block(s, self._shapes[s], given, self._fill) for s in Scope}
        highest = {s: block.copy() for s, block in blocks.items()}
        for (scope, name), value in (most or {}).items():
            highest[scope][..., signal_index(scope, name)] = value
        num_servers = self._shapes[Scope.SERVER][0]
        window = RawWindow(
            last=blocks,
            minimum=blocks,
            maximum=highest,
            mean=blocks,
            previous_last=self._before,
            last_at_s=np.full(num_servers, at_s),
            previous_at_s=np.full(num_servers, self._before_s),
        )
        self.derived = self.derivation.derive(window)
        self._before, self._before_s = blocks, at_s
        return self

    def value(self, node: Node, name: str, row: int = 0) -> float:
        values, is_valid = self.derived[node]
        place = row, column(node, name)
        assert is_valid[place] == np.isfinite(values[place])
        return float(values[place])


def gpu(**given: float) -> dict[tuple[Scope, str], float]:
    return {(Scope.GPU, name): value for name, value in given.items()}


def page(**given: float) -> dict[tuple[Scope, str], float]:
    return {(Scope.REPLICA, name): value for name, value in given.items()}


def host(**given: float) -> dict[tuple[Scope, str], float]:
    return {(Scope.SERVER, name): value for name, value in given.items()}


def growing(at_s: float) -> dict[tuple[Scope, str], float]:
    """All signals: counters that grow by 1 a second, gauges at their highest."""
    return {
        (scope, s.name): 10 + at_s if s.kind is Kind.COUNTER else min(s.high, 1e12)
        for scope, signals in SIGNALS_BY_SCOPE.items()
        for s in signals
    } | page(page_age_s=0.0)


def test_every_feature_with_a_live_source_is_derived() -> None:
    rack = Rack(make_server(*Precision))
    for at_s in (0.0, 1.0):
        rack.sample(at_s, growing(at_s))
    probed = {Live.NVML, Live.HOST, Live.VLLM, Live.SGLANG, Live.LLAMACPP, Live.CONFIG}
    missing = {
        (node, feature.name)
        for node in NODES
        for feature in FEATURES_BY_NODE[node]
        if probed & set(feature.live)
        and not rack.derived[node][1][:, column(node, feature.name)].any()
    }
    assert missing == set(NOT_DERIVED)


def test_features_without_any_source_here_stay_absent() -> None:
    rack = Rack(make_server(Precision.BF16)).sample(0.0, growing(0.0)).sample(1.0, growing(1.0))
    for name in ("outstanding_requests", "page_table_entries", "ttft_log_ratio"):
        assert np.isnan(rack.value(Node.REPLICA, name))


def test_absent_signals_give_absent_features() -> None:
    rack = Rack(make_server(Precision.BF16)).sample(0.0, {}).sample(1.0, {})
    assert np.isnan(rack.value(Node.GPU, "sm_activity_frac"))
    assert np.isnan(rack.value(Node.REPLICA, "running_requests"))
    assert rack.value(Node.GPU, "peak_bf16_flops") == H100.peak_flops[Precision.BF16]


def test_gauges_over_constants() -> None:
    rack = Rack(make_server(Precision.BF16)).sample(
        0.0,
        gpu(
            power_watts=350, sm_clock_mhz=990, sm_clock_max_mhz=1980, memory_used_bytes=2**35,
            memory_bytes=2**36, nvlink_tx_bytes_per_s=45e9, nvlink_rx_bytes_per_s=90e9,
            power_limit_watts=700, recovery_action=0,
        ),
        most=gpu(power_watts=630, nvlink_tx_bytes_per_s=135e9),
    )  # fmt: skip
    expected = {
        "power_frac": 0.5, "power_max_frac": 0.9, "power_limit_frac": 1.0, "sm_clock_frac": 0.5,
        "hbm_used_frac": 0.5, "nvlink_tx_frac": 0.1, "nvlink_rx_frac": 0.2, "nvlink_max_frac": 0.3,
        "is_usable": 1.0, "weights_frac": model("llama-3-8b").total_params * 2 / 2**36,
    }  # fmt: skip
    for name, value in expected.items():
        assert rack.value(Node.GPU, name) == pytest.approx(value, rel=1e-6), name


def test_counters_become_rates() -> None:
    rack = Rack(make_server(Precision.BF16))
    for at_s in (0.0, 0.1, 0.2, 0.3):
        counters = gpu(pcie_tx_bytes=6.4e9 * at_s, power_throttle_s=0.25 * at_s)
        rack.sample(at_s, counters | gpu(ecc_corrected_errors=100 + 20 * at_s))
    assert rack.value(Node.GPU, "pcie_tx_frac") == pytest.approx(0.1, rel=1e-5)
    assert rack.value(Node.GPU, "power_throttle_frac") == pytest.approx(0.25, rel=1e-5)
    assert rack.value(Node.GPU, "ecc_corrected_per_s") == pytest.approx(20, rel=1e-4)


def test_a_counter_that_is_reset_leaves_its_rate_alone() -> None:
    rack = Rack(make_server(Precision.BF16))
    for at_s, joules in ((0.0, 900.0), (1.0, 1250.0), (2.0, 10.0), (3.0, 360.0)):
        rack.sample(at_s, gpu(energy_joules=joules))
        if at_s > 0:
            assert rack.value(Node.GPU, "power_frac") == pytest.approx(0.5, rel=1e-6), at_s


def test_throttle_flags_stand_in_where_there_is_no_counter() -> None:
    rack = Rack(make_server(Precision.BF16)).sample(0.0, gpu(is_power_throttled=1))
    assert rack.value(Node.GPU, "power_throttle_frac") == 1.0


def test_trend_of_a_ramp_is_its_slope_and_a_fall_is_a_surge_of_idleness() -> None:
    rack = Rack(make_server(Precision.BF16))
    for k in range(200):
        rack.sample(0.1 * k, gpu(sm_activity_frac=0.1 + 0.004 * k))
    assert rack.value(Node.GPU, "sm_activity_trend_per_s") == pytest.approx(0.04, rel=1e-3)
    assert rack.value(Node.GPU, "sm_idle_surge_frac") == 0.0
    # A ramp is 0.04 x 2 s ahead of its average; the surge is what is missing of the average.
    rack.sample(20.0, gpu(sm_activity_frac=0.0))
    average = 0.1 + 0.004 * 199 - 0.04 * 2
    assert rack.value(Node.GPU, "sm_idle_surge_frac") == pytest.approx(average, abs=0.003)


@pytest.mark.parametrize(
    ("precision", "pipe"),
    [
        (Precision.FP16, "hmma_activity_frac"),
        (Precision.BF16, "hmma_activity_frac"),
        (Precision.FP8, "tensor_activity_frac"),
        (Precision.INT8, "imma_activity_frac"),
    ],
)
def test_arithmetic_counts_for_the_format_that_runs(precision: Precision, pipe: str) -> None:
    given = gpu(tensor_activity_frac=0.2, sm_activity_frac=0.8) | gpu(**{pipe: 0.2})
    rack = Rack(make_server(precision)).sample(0.0, given)
    for p in Precision:
        frac = rack.value(Node.GPU, f"{p.value}_peak_frac")
        assert frac == pytest.approx(0.2) if p is precision else np.isnan(frac)
    flops = rack.value(Node.GPU, "achieved_flops")
    assert flops == pytest.approx(0.2 * H100.peak_flops[precision])
    assert rack.value(Node.GPU, "non_matmul_frac") == pytest.approx(0.75)


def test_idle_gpu_has_no_share_of_busy_time() -> None:
    rack = Rack(make_server(Precision.BF16))
    rack.sample(0.0, gpu(tensor_activity_frac=0.0, sm_activity_frac=0.0))
    assert np.isnan(rack.value(Node.GPU, "non_matmul_frac"))


def test_kv_memory_and_energy_of_the_gpus_of_a_replica() -> None:
    rack = Rack(make_server(Precision.BF16, tensor_parallel=2))
    for at_s in (0.0, 1.0):
        rack.sample(
            at_s,
            page(
                kv_pages=1000, kv_page_tokens=16, kv_usage_frac=0.25, output_tokens=100 * at_s,
                prompt_computed_tokens=300 * at_s, page_age_s=0, running_requests=5,
            )
            | gpu(energy_joules=400 * at_s, memory_bytes=80e9, nvlink_hops=2),
        )  # fmt: skip
    # 8 KV heads x 128 x 2 (K, V) x 2 bytes x 32 layers over 2 GPUs, in 16,000 token slots
    pool_frac = 8 * 128 * 2 * 2 * 32 / 2 * 16_000 / 80e9
    assert rack.value(Node.GPU, "kv_pool_frac") == pytest.approx(pool_frac, rel=1e-6)
    assert rack.value(Node.GPU, "kv_used_frac", row=1) == pytest.approx(pool_frac / 4, rel=1e-6)
    assert rack.value(Node.GPU, "joules_per_token", row=1) == pytest.approx(2.0)  # 2 x 400 W, 400/s
    assert np.isnan(rack.value(Node.GPU, "kv_pool_frac", row=2))  # serves nothing
    assert rack.value(Node.GPU, "nvlink_hops") == 2
    assert rack.value(Node.REPLICA, "active_kv_pages") == 250
    assert rack.value(Node.REPLICA, "pages_per_sequence") == 50


def test_a_gpu_alone_has_no_hops() -> None:
    rack = Rack(make_server(Precision.BF16)).sample(0.0, gpu(nvlink_hops=2))
    assert rack.value(Node.GPU, "nvlink_hops") == 0


def test_page_read_once_a_second_and_sampled_ten_times_has_one_rate() -> None:
    rack = Rack(make_server(Precision.BF16))
    rates = []
    for k in range(50):
        at_s, page_at_s = 0.1 * k, k // 10
        given = page(output_tokens=500 * page_at_s, page_age_s=at_s - page_at_s, running_requests=4)
        rack.sample(at_s, given)
        rates.append(rack.value(Node.REPLICA, "output_tokens_per_s"))
    assert rates[10:] == pytest.approx([500.0] * 40, rel=1e-4)


def test_ratios_of_counters_are_means_of_what_ended() -> None:
    rack = Rack(make_server(Precision.BF16))
    for at_s in (0.0, 1.0):
        rack.sample(
            at_s,
            page(
                e2e_sum_s=20 * at_s, e2e_count=4 * at_s, tpot_sum_s=0.1 * at_s,
                tpot_count=4 * at_s, prefix_hit_tokens=300 * at_s,
                prefix_queried_tokens=1200 * at_s, external_hit_tokens=60 * at_s, page_age_s=0,
            ),
        )  # fmt: skip
    expected = {"hold_s": 5.0, "tpot_mean_s": 0.025, "cache_hit_frac": 0.25, "host_hit_frac": 0.05}
    for name, value in expected.items():
        assert rack.value(Node.REPLICA, name) == pytest.approx(value, rel=1e-6), name


def test_a_ratio_is_absent_once_nothing_ended_for_long() -> None:
    rack = Rack(make_server(Precision.BF16))
    for at_s in (0.0, 1.0, 2.0, 20.0):
        rack.sample(at_s, page(e2e_sum_s=5 * min(at_s, 1), e2e_count=min(at_s, 1), page_age_s=0))
        assert np.isnan(rack.value(Node.REPLICA, "hold_s")) == (at_s in (0.0, 20.0))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"cache_hit_frac": 0.4}, {"cache_hit_frac": 0.6}),  # SGLang
        (
            {"prompt_cached_tokens": 0, "prompt_computed_tokens": 0},  # llama.cpp
            {"prompt_cached_tokens": 60, "prompt_computed_tokens": 40},
        ),
    ],
)
def test_cache_hits_of_other_engines(first: dict[str, float], second: dict[str, float]) -> None:
    rack = Rack(make_server(Precision.BF16)).sample(0.0, page(**first, page_age_s=0))
    rack.sample(1.0, page(**second, page_age_s=0))
    assert rack.value(Node.REPLICA, "cache_hit_frac") == pytest.approx(0.6)
    trend = 0.2 if "cache_hit_frac" in first else 0.0
    assert rack.value(Node.REPLICA, "cache_hit_trend") == pytest.approx(trend)


def test_iteration_log_ratio_is_measured_over_the_roofline() -> None:
    server = make_server(Precision.BF16)
    nominal = nominal_times(H100, server.replicas[0])
    expected_s = nominal.decode_base_s[8] + 4000 * nominal.decode_context_s
    rack = Rack(server)
    for at_s in (0.0, 1.0):
        rack.sample(
            at_s,
            page(
                running_requests=8, kv_pages=1000, kv_usage_frac=0.25, kv_page_tokens=16,
                inter_token_sum_s=400 * 2 * expected_s * at_s, inter_token_count=400 * at_s,
                prompt_computed_tokens=1000 * at_s, page_age_s=0,
            ),
        )  # fmt: skip
    assert rack.value(Node.REPLICA, "decode_iteration_s") == pytest.approx(expected_s)
    assert rack.value(Node.REPLICA, "iteration_log_ratio") == pytest.approx(np.log(2), rel=1e-5)
    assert rack.value(Node.REPLICA, "prefill_frac") == pytest.approx(1000 * nominal.prefill_token_s)


def test_host_signals() -> None:
    rack = Rack(make_server(Precision.BF16))
    for at_s in (0.0, 1.0):
        rack.sample(
            at_s,
            host(
                cpu_busy_s=16 * at_s, cpu_total_s=64 * at_s, num_cores=64, load_1min=32,
                memory_bytes=1e12, memory_available_bytes=4e11, disk_read_bytes=1e9 * at_s,
                network_tx_bytes=1e9 * at_s, rdma_tx_bytes=4e9 * at_s, rdma_rx_bytes=2.5e9 * at_s,
            )
            | gpu(sm_activity_frac=0.3),
        )  # fmt: skip
    expected = {
        "cpu_frac": 0.25, "load_per_core": 0.5, "host_memory_frac": 0.6, "disk_read_frac": 0.5,
        "network_bytes_per_s": 25e9, "network_tx_frac": 0.2, "network_rx_frac": 0.1,
        "rdma_bytes_per_s": 6.5e9, "nvlink_bytes_per_s": 450e9, "sm_activity_frac": 0.3,
    }  # fmt: skip
    for name, value in expected.items():
        assert rack.value(Node.SERVER, name) == pytest.approx(value, rel=1e-6), name


def test_links_of_a_server() -> None:
    rack = Rack(make_server(Precision.BF16, num_gpus=2))
    for at_s in (0.0, 1.0):
        given = gpu(nvlink_tx_bytes_per_s=45e9, pcie_rx_bytes_per_s=16e9, pcie_link_frac=0.5)
        rack.sample(at_s, given | host(network_rx_bytes=5e9 * at_s))
    kinds = ["is_nvlink", "is_pcie", "is_pcie", "is_network"]
    assert len(rack.derived[Node.LINK][0]) == len(kinds)
    for row, kind in enumerate(kinds):
        assert rack.value(Node.LINK, kind, row) == 1.0
        assert rack.value(Node.LINK, "is_backbone", row) == 0.0
    assert rack.value(Node.LINK, "out_frac", 0) == pytest.approx(0.1)
    assert rack.value(Node.LINK, "in_frac", 1) == pytest.approx(0.25)
    assert rack.value(Node.LINK, "health_frac", 2) == 0.5
    assert rack.value(Node.LINK, "in_frac", 3) == pytest.approx(0.2)
    assert rack.value(Node.LINK, "latency_s", 3) == 50e-6


def test_gpus_that_share_a_pcie_root_add_up() -> None:
    server = ServerFacts(name="s", gpus=(GPUS["L40S-48G"],) * 4, gpus_per_pcie_root=2)
    rack = Rack(server).sample(0.0, gpu(pcie_tx_bytes_per_s=8e9))
    assert len(rack.derived[Node.LINK][0]) == 3  # two roots, the adapter, no NVLink
    assert rack.value(Node.LINK, "out_frac", 1) == pytest.approx(0.5)


def test_a_server_without_a_new_sample_keeps_its_features() -> None:
    rack = Rack(make_server(Precision.BF16)).sample(0.0, gpu(sm_activity_frac=0.5))
    rack.sample(0.0, gpu(sm_activity_frac=0.9))
    assert rack.value(Node.GPU, "sm_activity_frac") == 0.5


def test_a_share_read_above_one_is_one() -> None:
    rack = Rack(make_server(Precision.BF16)).sample(0.0, gpu(sm_activity_frac=1.05))
    assert rack.value(Node.GPU, "sm_activity_frac") == 1.0


def test_servers_of_one_rack_may_differ() -> None:
    small = ServerFacts(name="small", gpus=(GPUS["L40S-48G"], None))
    rack = Rack(make_server(Precision.BF16), small).sample(0.0, gpu(power_watts=175))
    power: FloatArray = rack.derived[Node.GPU][0][:, column(Node.GPU, "power_frac")]
    assert power[:4] == pytest.approx([0.25] * 4)
    assert power[4] == pytest.approx(0.5)
    assert np.isnan(power[5:]).all()


def test_a_window_of_another_rack_is_refused() -> None:
    rack = Rack(make_server(Precision.BF16))
    rack.derivation = Derivation(rack_constants([make_server(Precision.BF16, num_gpus=2)]))
    with pytest.raises(ValueError, match=r"gpu signals must have shape \(1, 2, ...\), got \(1, 4"):
        rack.sample(0.0, {})
