"""Plausible signals of a server that does not exist, for machines without a GPU.

The load swings between a fifth and nine tenths; everything follows from it by simple formulas. It
shows how the path from probe to state works, and says nothing of any GPU.

Does not know: real hardware, or the simulator of the fleet.
Run: `python -m trimtab.runtime.telemetry.probes.synthetic OUT.npz` writes the bundled recording.
"""

import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ..signals import Scope
from .probe import Members, Readings, put
from .recorded import Recorder

# From one swing of the load to the next.
_SWING_S = 20.0
_HBM_BYTES = 80e9
_POWER_LIMIT_WATTS = 700.0
_IDLE_WATTS = 90.0

_STEADY_GPU = {
    "memory_bytes": _HBM_BYTES,
    "power_limit_watts": _POWER_LIMIT_WATTS,
    "sm_clock_max_mhz": 1980.0,
    "memory_clock_mhz": 2619.0,
    "memory_clock_max_mhz": 2619.0,
    "pcie_link_frac": 1.0,
    "nvlink_links_up_frac": 1.0,
    "nvlink_hops": 2.0,
    "is_thermally_throttled": 0.0,
    "is_brake_throttled": 0.0,
    "pcie_replays": 0.0,
    "nvlink_errors": 0.0,
    "ecc_corrected_errors": 0.0,
    "ecc_uncorrected_errors": 0.0,
    "remapped_rows": 0.0,
    "is_remap_pending": 0.0,
    "xid_errors": 0.0,
    "recovery_action": 0.0,
}
_STEADY_SERVER = {"num_cores": 64.0, "memory_bytes": 1e12, "network_peak_bytes_per_s": 5e10}
_STEADY_REPLICA = {"is_awake": 1.0, "kv_pages": 27_000.0, "kv_page_tokens": 16.0, "page_age_s": 0.0}


class SyntheticProbe:
    """Samples a made-up server whose replicas share its GPUs evenly."""

    def __init__(
        self,
        *,
        num_gpus: int = 2,
        num_replicas: int = 1,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._members = Members(
            gpus=tuple(f"synthetic-gpu-{i}" for i in range(num_gpus)),
            replicas=tuple(f"synthetic-replica-{i}" for i in range(num_replicas)),
        )
        self._random = np.random.default_rng(seed)
        self._clock = clock
        self._started_at_s = clock()
        self._last_at_s = self._started_at_s
        self._counted: dict[tuple[Scope, int, str], float] = {}

    @property
    def members(self) -> Members:
        """The GPUs and replicas that were asked for."""
        return self._members

    def sample(self) -> Readings:
        """Return the signals of this moment."""
        now_s = self._clock()
        span_s, self._last_at_s = now_s - self._last_at_s, now_s
        readings = self._members.absent()
        swing = math.sin(2 * math.pi * (now_s - self._started_at_s) / _SWING_S)
        for row in range(len(self._members.gpus)):
            self._gpu(readings, row, self._load(swing), span_s)
        for row in range(len(self._members.replicas)):
            self._replica(readings, row, self._load(swing), span_s)
        self._server(readings, self._load(swing), span_s)
        return readings

    def close(self) -> None:
        """Nothing is held."""

    def _load(self, swing: float) -> float:
        return float(np.clip(0.55 + 0.35 * swing + self._random.normal(0.0, 0.02), 0.0, 1.0))

    def _gpu(self, readings: Readings, row: int, load: float, span_s: float) -> None:
        power_watts = _IDLE_WATTS + (_POWER_LIMIT_WATTS - _IDLE_WATTS) * load
        is_throttled = float(load > 0.85)
        gauges = {
            "graphics_activity_frac": min(1.0, 1.1 * load),
            "sm_activity_frac": load,
            "sm_occupancy_frac": 0.3 * load,
            "integer_activity_frac": 0.15 * load,
            "tensor_activity_frac": 0.6 * load,
            "hmma_activity_frac": 0.6 * load,
            "imma_activity_frac": 0.0,
            "dram_activity_frac": 0.3 + 0.4 * load,
            "fp64_activity_frac": 0.0,
            "fp32_activity_frac": 0.1 * load,
            "fp16_activity_frac": 0.05 * load,
            "pcie_tx_bytes_per_s": 1e8 * load,
            "pcie_rx_bytes_per_s": 2e8 * load,
            "nvlink_tx_bytes_per_s": 4e10 * load,
            "nvlink_rx_bytes_per_s": 4e10 * load,
            "power_watts": power_watts,
            "sm_clock_mhz": 1980.0 - 150.0 * is_throttled,
            "temperature_celsius": 35.0 + 40.0 * load,
            "memory_temperature_celsius": 45.0 + 40.0 * load,
            "is_power_throttled": is_throttled,
            "memory_used_bytes": 0.9 * _HBM_BYTES,
        }
        rates = {
            "pcie_tx_bytes": 1e8 * load,
            "pcie_rx_bytes": 2e8 * load,
            "nvlink_tx_bytes": 4e10 * load,
            "nvlink_rx_bytes": 4e10 * load,
            "energy_joules": power_watts,
            "power_throttle_s": is_throttled,
            "thermal_throttle_s": 0.0,
            "brake_throttle_s": 0.0,
        }
        self._put(readings, Scope.GPU, row, _STEADY_GPU | gauges)
        self._count(readings, Scope.GPU, row, rates, span_s)

    def _replica(self, readings: Readings, row: int, load: float, span_s: float) -> None:
        output_rate, request_rate = 4000.0 * load, 20.0 * load
        gauges = {
            "running_requests": round(64 * load),
            "waiting_requests": round(max(0.0, 40 * (load - 0.7))),
            "kv_usage_frac": 0.9 * load,
            "ttft_p50_s": 0.1 + 0.2 * load,
            "ttft_p99_s": 0.3 + 1.5 * load**4,
            "tpot_p99_s": 0.02 + 0.03 * load,
        }
        rates = {
            "iterations": 50.0 * load,
            "preemptions": 0.0,
            "prefix_queried_tokens": 1000 * request_rate,
            "prefix_hit_tokens": 400 * request_rate,
            "prompt_tokens": 1000 * request_rate,
            "prompt_cached_tokens": 400 * request_rate,
            "prompt_computed_tokens": 600 * request_rate,
            "output_tokens": output_rate,
            "ttft_sum_s": request_rate * (0.1 + 0.2 * load),
            "ttft_count": request_rate,
            "inter_token_sum_s": output_rate * (0.012 + 0.01 * load),
            "inter_token_count": output_rate,
            "e2e_sum_s": request_rate * 4.0,
            "e2e_count": request_rate,
        }
        self._put(readings, Scope.REPLICA, row, _STEADY_REPLICA | gauges)
        self._count(readings, Scope.REPLICA, row, rates, span_s)

    def _server(self, readings: Readings, load: float, span_s: float) -> None:
        gauges = {"load_1min": 12.0 * load, "memory_available_bytes": 9e11 - 1e11 * load}
        rates = {
            "cpu_busy_s": 10.0 * load,
            "cpu_total_s": _STEADY_SERVER["num_cores"],
            "network_tx_bytes": 1e8 * load,
            "network_rx_bytes": 5e7 * load,
            "network_errors": 0.0,
            "disk_read_bytes": 1e6,
        }
        self._put(readings, Scope.SERVER, 0, _STEADY_SERVER | gauges)
        self._count(readings, Scope.SERVER, 0, rates, span_s)

    def _put(self, readings: Readings, scope: Scope, row: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            put(readings, scope, name, value, row)

    def _count(
        self,
        readings: Readings,
        scope: Scope,
        row: int,
        rates: Mapping[str, float],
        span_s: float,
    ) -> None:
        for name, rate in rates.items():
            key = (scope, row, name)
            self._counted[key] = self._counted.get(key, 0.0) + rate * span_s
            put(readings, scope, name, self._counted[key], row)


def write_recording(path: Path, *, num_samples: int = 200, period_s: float = 0.1) -> None:
    """Write a recording of a synthetic server; the same each time."""
    now_s = [0.0]
    recorder = Recorder(SyntheticProbe(clock=lambda: now_s[0]), clock=lambda: now_s[0])
    for i in range(num_samples):
        now_s[0] = i * period_s
        recorder.sample()
    recorder.recording().save(path)


if __name__ == "__main__":
    write_recording(Path(sys.argv[1]))
