"""Triggers from the signals of the last 500 ms, compiled.

A trigger *fires* when its condition is met and *holds* while a weaker one is, so that noise at the
threshold does not make it flicker. A surge is sought at five scales from 20 to 500 ms: arrivals
must exceed their slow average by a factor and by more than chance would bring. Values that are not
finite fire nothing; a clock that stands still or goes back changes nothing.

Does not know: what a trigger leads to (`controller.py`).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...env.compiled import compiled, source_tag
from .emergency_rules import Trigger
from .signals import FLEET_SIGNAL_DTYPE

# Samples kept: 500 ms of ticks every 10 ms, and one to difference with.
NUM_SLOTS = 51
SPAN_S = 0.5

DETECTOR_DTYPE = np.dtype(
    [
        ("surge_ratio", np.float64),  # arrivals over their average that fire
        ("surge_hold_ratio", np.float64),
        ("surge_sigmas", np.float64),  # and standard deviations above it
        ("average_s", np.float64),  # time constant of the slow average
        ("warm_up_s", np.float64),  # before there is an average to compare with
        ("growth", np.float64),  # seconds of wait that a second adds
        ("num_failures", np.float64),
        ("memory_fires_frac", np.float64),
        ("memory_holds_frac", np.float64),
        ("idle_busy_frac", np.float64),  # busy share below which a replica is idle
        ("silence_s", np.float64),  # beyond twice the predicted wait
    ]
)


def default_detector() -> np.ndarray:
    """Return the detector's settings, DETECTOR_DTYPE [1]."""
    settings = np.zeros(1, DETECTOR_DTYPE)
    settings[0] = (2.0, 1.5, 6.0, 30.0, 2.0, 0.5, 3.0, 0.97, 0.9, 0.02, 1.0)
    return settings


MEMORY_DTYPE = np.dtype(
    [
        ("num_ticks", np.int64),
        ("num_slots", np.int64),  # samples in the ring
        ("begin_s", np.float64),
        ("now_s", np.float64),  # of the last tick
        ("arrivals_per_s", np.float64),  # slow average
        ("num_transitions", np.int64),
        ("fires", np.int64),  # the fleet's triggers
        ("holds", np.int64),
        ("num_silences", np.int64),  # that began or ended
        # A change in any compiled file makes another type, and so compiles anew.
        (f"source_{source_tag(sorted(Path(__file__).parent.glob('*.py')))}", np.int8),
    ]
)


class Detector(NamedTuple):
    """What the detector keeps. S slots, R replicas."""

    settings: np.ndarray  # DETECTOR_DTYPE [1]
    memory: np.ndarray  # MEMORY_DTYPE [1]
    fleet_ring: np.ndarray  # FLEET_SIGNAL_DTYPE [S]
    failures: np.ndarray  # float64 [S, R]
    busy_s: np.ndarray  # float64 [S, R]
    fires: np.ndarray  # int64 [R], triggers of each replica
    holds: np.ndarray  # int64 [R]
    is_silent: np.ndarray  # int64 [R], no sign of life
    silent_from_s: np.ndarray  # float64 [R], its last sign of life then


def make_detector(num_replicas: int) -> Detector:
    """Return a detector that has seen nothing."""
    ints, floats = np.zeros(num_replicas, np.int64), np.zeros(num_replicas)
    rings = np.zeros((NUM_SLOTS, num_replicas))
    memory = np.zeros(1, MEMORY_DTYPE)
    memory["now_s"] = -np.inf
    return Detector(
        settings=default_detector(),
        memory=memory,
        fleet_ring=np.zeros(NUM_SLOTS, FLEET_SIGNAL_DTYPE),
        failures=rings.copy(),
        busy_s=rings.copy(),
        fires=ints.copy(),
        holds=ints.copy(),
        is_silent=ints.copy(),
        silent_from_s=floats.copy(),
    )


_SURGE, _GROWTH = int(Trigger.SURGE), int(Trigger.QUEUE_GROWTH)
_FAILURES, _MEMORY = int(Trigger.ALLOCATION_FAILURES), int(Trigger.MEMORY_HIGH)
_IDLE, _SILENCE = int(Trigger.IDLE_SURGE), int(Trigger.SILENCE)
# Arrivals above the average that chance alone may bring, whatever the average.
_FEW = 6.0


@compiled
def _slot_before(detector, newest, span_s):
    """Return the newest sample that is at least so old, else the oldest there is."""
    memory, ring = detector.memory[0], detector.fleet_ring
    at_s = ring[newest].now_s - span_s
    slot = newest
    for back in range(1, memory.num_slots):
        slot = (newest - back) % NUM_SLOTS
        if ring[slot].now_s <= at_s:
            break
    return slot


@compiled
def _surge(detector, newest):
    """Return (fires, holds): arrivals above their slow average, at any scale."""
    d, ring, rate = detector.settings[0], detector.fleet_ring, detector.memory[0].arrivals_per_s
    fires, holds = 0, 0
    for step in (2, 5, 10, 25, 50):
        slot = _slot_before(detector, newest, 0.01 * step - 1e-6)
        span_s = ring[newest].now_s - ring[slot].now_s
        count = ring[newest].num_arrived - ring[slot].num_arrived
        mean = rate * span_s
        chance = d.surge_sigmas * np.sqrt(mean) + _FEW
        if count > d.surge_ratio * mean and count > mean + chance:
            fires = _SURGE
        if step == 50 and count > d.surge_hold_ratio * mean and count > mean + 0.5 * chance:
            holds = _SURGE
    return fires, holds | fires


@compiled
def _queue_growth(detector, newest):
    """Return (fires, holds): the shortest queue is late, and grows."""
    ring = detector.fleet_ring
    now = ring[newest]
    oldest = _slot_before(detector, newest, SPAN_S - 1e-6)
    span_s = now.now_s - ring[oldest].now_s
    growth_s = now.least_wait_s - ring[oldest].least_wait_s
    is_late = now.least_wait_s > now.ttft_slo_s
    is_growing = span_s > 0.0 and growth_s > detector.settings[0].growth * span_s
    fires = _GROWTH if is_late and is_growing else 0
    return fires, _GROWTH if is_late else 0


@compiled
def _judge_replica(detector, s, r, oldest, span_s):
    """Set a replica's triggers; `oldest` is the slot at the other end of the span."""
    d, fires, holds = detector.settings[0], 0, 0
    failures = s.allocation_failures - detector.failures[oldest, r]
    if failures >= d.num_failures:
        fires |= _FAILURES
    if failures > 0.0:
        holds |= _FAILURES
    if s.kv_usage_frac >= d.memory_fires_frac:
        fires |= _MEMORY
    if s.kv_usage_frac >= d.memory_holds_frac:
        holds |= _MEMORY
    now_s = detector.memory[0].now_s
    quiet_s = now_s - s.progress_at_s
    busy_frac = (s.busy_s - detector.busy_s[oldest, r]) / span_s if span_s > 0.0 else 1.0
    if s.outstanding_requests > 0.0 and s.is_available != 0:
        if busy_frac < d.idle_busy_frac and quiet_s >= SPAN_S and span_s >= 0.9 * SPAN_S:
            fires |= _IDLE
        if quiet_s > d.silence_s + 2.0 * s.predicted_wait_s:
            fires |= _SILENCE
    detector.fires[r] = fires
    detector.holds[r] = holds | fires


@compiled
def _note_silence(detector, s, r):
    """Mark a replica without a sign of life, until one comes or nothing is outstanding there."""
    if detector.fires[r] & (_IDLE | _SILENCE):
        if detector.is_silent[r] == 0:
            detector.is_silent[r] = 1
            detector.memory[0].num_silences += 1
            detector.silent_from_s[r] = s.progress_at_s
    elif detector.is_silent[r] != 0:
        has_sign = s.progress_at_s > detector.silent_from_s[r] or s.outstanding_requests <= 0.0
        if has_sign:
            detector.is_silent[r] = 0
            detector.memory[0].num_silences += 1


@compiled
def _average(detector, arrived, span_s):
    """Take the arrivals of a span into the slow average; the plain mean until it has run in."""
    memory = detector.memory[0]
    lasting_s = min(detector.settings[0].average_s, memory.now_s - memory.begin_s)
    share = min(1.0, span_s / max(lasting_s, span_s))
    rate = arrived / span_s
    if np.isfinite(rate) and rate >= 0.0:
        memory.arrivals_per_s += share * (rate - memory.arrivals_per_s)


@compiled
def detect(detector, fleet_signals, signals):
    """Take one moment in and set all triggers; return whether the clock has moved on.

    Shapes: FLEET_SIGNAL_DTYPE [1], REPLICA_SIGNAL_DTYPE [R].
    """
    memory, now = detector.memory[0], fleet_signals[0]
    if not (now.now_s > memory.now_s and np.isfinite(now.now_s)):
        return False
    last = (memory.num_ticks - 1) % NUM_SLOTS
    span_s = now.now_s - memory.now_s
    # After a gap the ring says nothing of the last 500 ms.
    if memory.num_ticks == 0:
        memory.begin_s = now.now_s
    elif span_s > SPAN_S:
        memory.num_slots = 0
    newest = memory.num_ticks % NUM_SLOTS
    memory.num_ticks += 1
    memory.now_s = now.now_s
    detector.fleet_ring[newest] = now
    memory.num_slots = min(memory.num_slots + 1, NUM_SLOTS)
    for r in range(signals.size):
        detector.failures[newest, r] = signals[r].allocation_failures
        detector.busy_s[newest, r] = signals[r].busy_s
    surge, surge_holds = 0, 0
    if memory.num_ticks > 1:
        if memory.now_s - memory.begin_s >= detector.settings[0].warm_up_s:
            surge, surge_holds = _surge(detector, newest)
        _average(detector, now.num_arrived - detector.fleet_ring[last].num_arrived, span_s)
    growth, growth_holds = _queue_growth(detector, newest)
    memory.fires, memory.holds = surge | growth, surge_holds | growth_holds
    oldest = _slot_before(detector, newest, SPAN_S - 1e-6)
    judged_s = now.now_s - detector.fleet_ring[oldest].now_s
    for r in range(signals.size):
        _judge_replica(detector, signals[r], r, oldest, judged_s)
        _note_silence(detector, signals[r], r)
    return True
