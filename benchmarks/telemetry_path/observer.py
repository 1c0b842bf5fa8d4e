"""Watches the states that a run publishes, from its warm-up on, and sums up what they show.

Does not know: how the states came about.
"""

import numpy as np

from telemetry_path.clock_errors import clock_errors
from telemetry_path.measures import AgeMeter, CpuMeter
from telemetry_path.path import Path
from telemetry_path.schedule import Schedule
from telemetry_path.truth import ErrorMeter, true_features
from trimtab.env.state.cluster_state import ClusterState
from trimtab.env.state.feature import Node
from trimtab.runtime.telemetry.reasons import Reason

# s until clocks are known and averages settled; not measured
WARM_UP_S = 1.5
# Ticks of which one state is kept, to compare its features with the true ones.
_KEEP_TICKS = 5
# What a fleet makes its probes do wrong, and aggregators count one by one.
INJECTED = (
    Reason.LOST, Reason.DUPLICATE, Reason.OUT_OF_ORDER, Reason.MALFORMED, Reason.WRONG_SCHEMA,
    Reason.NOT_FINITE, Reason.OUT_OF_RANGE,
)  # fmt: skip


class Observer:
    """Takes every published state of a run."""

    def __init__(self, schedule: Schedule, path: Path, tick_s: float) -> None:
        probes = schedule.probes
        self._tick_s = tick_s
        self._keep_every = _KEEP_TICKS * len(path.racks)
        self._schedule, self._path = schedule, path
        self._is_honest = ~(probes.is_frozen | probes.has_false_clock)
        self._ages = AgeMeter(probes, self._is_honest)
        self._kept: list[tuple[ClusterState, np.ndarray]] = []
        self._rack_bytes_before = 0
        self._began_s: float | None = None
        self._ended_s = 0.0
        self._num_states = 0
        self._widest_bound_s = 0.0
        self.cpu = CpuMeter()
        """Anew when the warm-up ends."""

    def take(self, state: ClusterState, now_s: float) -> None:
        """Take a state that was out at a moment of hub time, later than the state's own."""
        if now_s < WARM_UP_S:
            return
        if self._began_s is None:
            self._began_s, self.cpu = now_s, CpuMeter()
            self._rack_bytes_before = self._path.num_rack_bytes
        else:
            self._num_states += 1
        rounds = self._ages.add(now_s, state.age_s[Node.SERVER] + now_s - state.now_s)
        bounds_s = np.concatenate(
            [one.clocks.error_bound_s for one in self._path.aggregators.values()]
        )
        known_s = bounds_s[self._is_honest & np.isfinite(bounds_s)]  # restarted ones are not yet
        self._widest_bound_s = max(self._widest_bound_s, float(known_s.max(initial=0.0)))
        if self._num_states % self._keep_every == 0:
            self._kept.append((state, rounds[: len(self._schedule.recorded)]))
        self._ended_s = now_s

    def figures(self) -> dict[str, float]:
        """Return what the run came to."""
        cpu = self.cpu.finish()
        if self._began_s is None or not self._num_states:
            msg = f"a run must last longer than its warm-up of {WARM_UP_S} s and publish 2 states"
            raise ValueError(msg)
        span_s = self._ended_s - self._began_s
        ticks = span_s / self._tick_s
        rack_bytes = self._path.num_rack_bytes - self._rack_bytes_before
        raw_per_s = self._schedule.raw_bytes / self._schedule.seconds
        p50_s, p99_s, most_s = self._ages.quantiles_s(0.5, 0.99, 1.0)
        probes = self._schedule.probes
        return {
            "frames_per_s": self._schedule.num_frames / self._schedule.seconds,
            "states_per_s": self._num_states / span_s,
            "age_p50_ms": 1e3 * p50_s,
            "age_p99_ms": 1e3 * p99_s,
            "age_max_ms": 1e3 * most_s,
            "age_error_max_ms": 1e3 * self._ages.most_error_s,
            "age_error_bound_ms": 1e3 * self._widest_bound_s,
            "raw_bytes_per_s": raw_per_s,
            "aggregated_bytes_per_s": rack_bytes / span_s,
            "bytes_ratio": raw_per_s / (rack_bytes / span_s),
            **{f"cpu_{part}_ms_per_tick": 1e3 * spent / ticks for part, spent in cpu.items()},
            "cpu_ms_per_tick": 1e3 * sum(cpu.values()) / ticks,
            **clock_errors(self._path.aggregators, probes, self._ended_s),
            **self._errors(),
            **self.counts(),
        }

    def counts(self) -> dict[str, float]:
        """Return what honest probes' frames were counted for, beside what was injected."""
        injected, path = self._schedule.probes.injected, self._path
        expected = {reason: injected[reason] for reason in INJECTED}
        # A frame that comes after the next one was missed first.
        expected[Reason.LOST] += expected[Reason.OUT_OF_ORDER]
        liars = self._schedule.probes.liars
        for reason in INJECTED:
            of_liars = [injected.of_probe(probe).get(reason, 0) for probe in liars]
            if reason not in (Reason.MALFORMED, Reason.WRONG_SCHEMA):  # nobody's name on those
                expected[reason] -= sum(of_liars)
            if reason is Reason.LOST:
                late = (injected.of_probe(probe).get(Reason.OUT_OF_ORDER, 0) for probe in liars)
                expected[reason] -= sum(late)
        counted = path.counted(without=liars)
        figures = {}
        for reason in INJECTED:
            figures[f"injected_{reason}"] = float(expected[reason])
            figures[f"counted_{reason}"] = float(counted.get(reason, 0))
        for reason, number in counted.items():
            if reason not in INJECTED:
                figures[f"counted_{reason}"] = float(number)
        trusted = np.concatenate([~one.is_distrusted for one in path.aggregators.values()])
        figures["num_liars"] = float(len(liars))
        figures["num_liars_found"] = float((~trusted & ~self._is_honest).sum())
        figures["num_honest_distrusted"] = float((~trusted & self._is_honest).sum())
        return figures

    def _errors(self) -> dict[str, float]:
        recorded = self._schedule.recorded
        meter = ErrorMeter(
            fleet=self._path.hub.layout,
            rack=0,
            truth=true_features(self._schedule),
            is_honest=self._is_honest[recorded.start : recorded.stop],
        )
        for state, rounds in self._kept:
            meter.add(state, rounds)
        return {
            "error_max": meter.most,
            "error_rms": meter.rms,
            "error_promised": max(one.largest_error for one in self._path.aggregators.values()),
            "absent_mismatch_frac": meter.num_absent / max(meter.number, 1),
        }
