"""What each raw signal shows on an idle and on a fully loaded machine, and how much it jitters.

Of a counter the levels are rates a second. Between idle and full a signal follows the load in a
straight line; the jitter is a share of the distance between the two.

Does not know: the load, or how a signal moves from moment to moment (`signals.py`).
Source: magnitudes of an H100 SXM server under vLLM; power from `env/hardware.py`; the rest assumed.
"""

from typing import NamedTuple

from ..signals import Scope


class Level(NamedTuple):
    """Range of one signal."""

    idle: float
    full: float
    jitter: float = 0.0
    """Standard deviation, as a share of the distance between idle and full."""


_J = 0.02  # activity over 100 ms jitters by a few hundredths

LEVELS: dict[Scope, dict[str, Level]] = {
    Scope.GPU: {
        "graphics_activity_frac": Level(0.02, 0.98, _J),
        "sm_activity_frac": Level(0.02, 0.95, _J),
        "sm_occupancy_frac": Level(0.01, 0.45, _J),
        "integer_activity_frac": Level(0.0, 0.12, _J),
        "tensor_activity_frac": Level(0.0, 0.5, _J),
        "hmma_activity_frac": Level(0.0, 0.5, _J),
        "imma_activity_frac": Level(0.0, 0.0),
        "dram_activity_frac": Level(0.01, 0.8, _J),
        "fp64_activity_frac": Level(0.0, 0.0),
        "fp32_activity_frac": Level(0.0, 0.15, _J),
        "fp16_activity_frac": Level(0.0, 0.05, _J),
        "pcie_tx_bytes_per_s": Level(1e7, 4e9, 0.05),
        "pcie_rx_bytes_per_s": Level(1e7, 6e9, 0.05),
        "nvlink_tx_bytes_per_s": Level(0.0, 8e10, 0.05),
        "nvlink_rx_bytes_per_s": Level(0.0, 8e10, 0.05),
        "pcie_tx_bytes": Level(1e7, 4e9, 0.05),
        "pcie_rx_bytes": Level(1e7, 6e9, 0.05),
        "nvlink_tx_bytes": Level(0.0, 8e10, 0.05),
        "nvlink_rx_bytes": Level(0.0, 8e10, 0.05),
        "pcie_link_frac": Level(1.0, 1.0),
        "pcie_replays": Level(0.0, 0.001),
        "nvlink_links_up_frac": Level(1.0, 1.0),
        "nvlink_errors": Level(0.0, 0.001),
        "nvlink_hops": Level(2.0, 2.0),
        "power_watts": Level(75.0, 690.0, _J),
        "power_limit_watts": Level(700.0, 700.0),
        "energy_joules": Level(75.0, 690.0, _J),
        "sm_clock_mhz": Level(1980.0, 1755.0, 0.03),
        "sm_clock_max_mhz": Level(1980.0, 1980.0),
        "memory_clock_mhz": Level(2619.0, 2619.0),
        "memory_clock_max_mhz": Level(2619.0, 2619.0),
        "temperature_celsius": Level(32.0, 74.0, 0.005),
        "memory_temperature_celsius": Level(38.0, 88.0, 0.005),
        "is_power_throttled": Level(-0.5, 1.0, 0.05),
        "is_thermally_throttled": Level(0.0, 0.0),
        "is_brake_throttled": Level(0.0, 0.0),
        "power_throttle_s": Level(0.0, 0.3, 0.1),
        "thermal_throttle_s": Level(0.0, 0.0),
        "brake_throttle_s": Level(0.0, 0.0),
        "memory_bytes": Level(8.55e10, 8.55e10),
        "memory_used_bytes": Level(7.5e10, 7.6e10),
        "ecc_corrected_errors": Level(0.0, 0.0005),
        "ecc_uncorrected_errors": Level(0.0, 0.0),
        "remapped_rows": Level(0.0, 0.0),
        "is_remap_pending": Level(0.0, 0.0),
        "xid_errors": Level(0.0, 0.0),
        "recovery_action": Level(0.0, 0.0),
    },
    Scope.SERVER: {
        "cpu_busy_s": Level(2.0, 40.0, _J),
        "cpu_iowait_s": Level(0.01, 0.5, 0.05),
        "cpu_steal_s": Level(0.0, 0.0),
        "cpu_total_s": Level(192.0, 192.0),
        "num_cores": Level(192.0, 192.0),
        "load_1min": Level(2.0, 45.0, 0.002),
        "cpu_pressure_s": Level(0.0, 0.05, 0.1),
        "memory_bytes": Level(2.1e12, 2.1e12),
        "memory_available_bytes": Level(1.9e12, 1.6e12, 0.001),
        "swap_used_bytes": Level(0.0, 0.0),
        "memory_pressure_s": Level(0.0, 0.01, 0.1),
        "network_tx_bytes": Level(1e6, 5e8, 0.05),
        "network_rx_bytes": Level(1e6, 4e8, 0.05),
        "network_errors": Level(0.0, 0.001),
        "network_peak_bytes_per_s": Level(2.5e10, 2.5e10),
        "rdma_tx_bytes": Level(0.0, 1.5e10, 0.05),
        "rdma_rx_bytes": Level(0.0, 1.5e10, 0.05),
        "rdma_errors": Level(0.0, 0.0005),
        "rdma_peak_bytes_per_s": Level(4e11, 4e11),
        "disk_read_bytes": Level(1e5, 5e7, 0.1),
        "disk_write_bytes": Level(1e5, 2e7, 0.1),
        "disk_busy_s": Level(0.0, 0.05, 0.1),
        "io_pressure_s": Level(0.0, 0.01, 0.1),
        "probe_sample_s": Level(0.002, 0.006, 0.2),
        "probe_skipped_samples": Level(0.0, 0.0),
    },
    Scope.REPLICA: {
        "running_requests": Level(0.0, 200.0, 0.03),
        "waiting_requests": Level(-30.0, 40.0, 0.03),
        "waiting_capacity_requests": Level(-30.0, 40.0, 0.03),
        "waiting_deferred_requests": Level(0.0, 0.0),
        "preemptions": Level(-0.2, 0.3, 0.1),
        "iterations": Level(5.0, 40.0, _J),
        "is_awake": Level(1.0, 1.0),
        "kv_usage_frac": Level(0.01, 0.92, 0.01),
        "kv_pages": Level(40_000.0, 40_000.0),
        "kv_page_tokens": Level(16.0, 16.0),
        "host_kv_usage_frac": Level(0.05, 0.7, 0.005),
        "kv_received_bytes": Level(0.0, 5e9, 0.1),
        "prefix_queried_tokens": Level(100.0, 20_000.0, 0.05),
        "prefix_hit_tokens": Level(60.0, 9_000.0, 0.05),
        "external_hit_tokens": Level(0.0, 1_000.0, 0.05),
        "cache_hit_frac": Level(0.4, 0.5, 0.05),
        "prompt_tokens": Level(100.0, 20_000.0, 0.05),
        "prompt_cached_tokens": Level(60.0, 9_000.0, 0.05),
        "prompt_computed_tokens": Level(40.0, 11_000.0, 0.05),
        "output_tokens": Level(10.0, 6_000.0, _J),
        "output_tokens_per_s": Level(10.0, 6_000.0, _J),
        "prefill_busy_s": Level(0.01, 0.5, 0.05),
        "decode_busy_s": Level(0.05, 0.5, 0.05),
        "ttft_sum_s": Level(0.5, 20.0, 0.05),
        "ttft_count": Level(2.0, 20.0, 0.02),
        "ttft_p50_s": Level(0.05, 1.5, 0.03),
        "ttft_p99_s": Level(0.2, 6.0, 0.03),
        "inter_token_sum_s": Level(0.2, 180.0, _J),
        "inter_token_count": Level(10.0, 6_000.0, _J),
        "tpot_sum_s": Level(0.05, 0.7, _J),
        "tpot_count": Level(2.0, 20.0, 0.02),
        "tpot_p99_s": Level(0.015, 0.06, 0.03),
        "e2e_sum_s": Level(5.0, 300.0, 0.03),
        "e2e_count": Level(2.0, 20.0, 0.02),
        "page_age_s": Level(0.0, 0.0),
    },
}
"""By scope and signal, in any order."""
