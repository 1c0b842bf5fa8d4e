"""Triggers from the signals of the last 500 ms, compiled.

A trigger *fires* when its condition is met and *holds* while a weaker one is, so that noise at the
threshold does not make it flicker. A surge is sought at five scales from 20 to 500 ms: arrivals
must exceed their slow average by a factor and by more than chance would bring, which is measured
too: requests that come in batches bring more of it than Poisson arrivals. Values that are not
finite fire nothing, but for an infinite wait, which says that nobody serves. Counters that go back
have begun anew. A clock that stands still or goes back changes nothing.

Does not know: what a trigger leads to (`controller.py`).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...env.compiled import compiled, source_tag
from .emergency_rules import Trigger
from .signals import FLEET_SIGNAL_DTYPE
from .trigger_levels import TriggerLevels

# Samples kept: 500 ms of ticks every 10 ms, and one to difference with.
NUM_SLOTS = 51
SPAN_S = 0.5

# Files of compiled code that a tick is made of, and those whose numbers it holds.
_COMPILED = (
    *("controller", "detector", "emergency_rules", "guarded_loop", "signals"),
    *("simulated_signals", "trigger_levels"),
)

MEMORY_DTYPE = np.dtype(
    [
        ("num_ticks", np.int64),
        ("num_slots", np.int64),  # samples in the ring
        ("begin_s", np.float64),
        ("now_s", np.float64),  # of the last tick
        ("arrivals_per_s", np.float64),  # slow average
        ("dispersion", np.float64),  # slow average of variance over mean, of counts in 500 ms
        ("block_from_s", np.float64),  # start of the count in progress
        ("block_arrived", np.float64),
        ("num_arrived", np.float64),  # counter as it was read last
        ("num_transitions", np.int64),
        ("fires", np.int64),  # the fleet's triggers
        ("holds", np.int64),
        ("num_silences", np.int64),  # that began or ended
        # A change in any compiled file makes another type, and so compiles anew.
        (
            f"source_{source_tag(Path(__file__).with_name(f'{name}.py') for name in _COMPILED)}",
            np.int8,
        ),
    ]
)


# What was last heard of one replica.
WATCH_DTYPE = np.dtype(
    [
        ("allocation_failures", np.float64),  # counter as it was read last
        ("probed_at_s", np.float64),
        ("busy_s", np.float64),  # counter of that probe
        ("idle_from_s", np.float64),  # all probes since then found it idle; infinity: not so
        ("heard_at_s", np.float64),  # last sign of life, or moment with nothing to do
        ("silent_from_s", np.float64),  # the same when it was marked as silent
    ]
)


class Detector(NamedTuple):
    """What the detector keeps. S slots, R replicas."""

    levels: np.ndarray  # LEVELS_DTYPE [1]
    memory: np.ndarray  # MEMORY_DTYPE [1]
    fleet_ring: np.ndarray  # FLEET_SIGNAL_DTYPE [S]; counters as sums of what was added
    failures: np.ndarray  # float64 [S, R], sums of what was added
    watches: np.ndarray  # WATCH_DTYPE [R]
    fires: np.ndarray  # int64 [R], triggers of each replica
    holds: np.ndarray  # int64 [R]
    is_silent: np.ndarray  # int64 [R], no sign of life
    is_stuck: np.ndarray  # int64 [R], its queue stands still


def make_detector(num_replicas: int, levels: TriggerLevels | None = None) -> Detector:
    """Return a detector that has seen nothing."""
    ints, watches = np.zeros(num_replicas, np.int64), np.zeros(num_replicas, WATCH_DTYPE)
    for name in ("allocation_failures", "probed_at_s"):
        watches[name] = np.nan
    watches["idle_from_s"] = np.inf
    watches["heard_at_s"] = -np.inf
    memory = np.zeros(1, MEMORY_DTYPE)
    memory["now_s"] = -np.inf
    memory["dispersion"] = 1.0
    return Detector(
        levels=(levels or TriggerLevels()).record(),
        memory=memory,
        fleet_ring=np.zeros(NUM_SLOTS, FLEET_SIGNAL_DTYPE),
        failures=np.zeros((NUM_SLOTS, num_replicas)),
        watches=watches,
        fires=ints.copy(),
        holds=ints.copy(),
        is_silent=ints.copy(),
        is_stuck=ints.copy(),
    )


_SURGE, _GROWTH = int(Trigger.SURGE), int(Trigger.QUEUE_GROWTH)
_FAILURES, _MEMORY = int(Trigger.ALLOCATION_FAILURES), int(Trigger.MEMORY_HIGH)
_IDLE, _SILENCE = int(Trigger.IDLE_SURGE), int(Trigger.SILENCE)
_STUCK = int(Trigger.STUCK)
# Arrivals above the average that chance alone may bring, whatever the average.
_FEW = 6.0
# What one count may say of the dispersion, and how long it takes to trust the counts.
_MOST_EXCESS = 20.0
_PRIOR_S = 5.0
# No counter gains so much in a tick; one that does is broken.
_MOST_ADDED = 1e9
# Clocks add up ticks; a span may come out shorter by this.
_TINY_S = 1e-6


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
    levels, ring, memory = detector.levels[0], detector.fleet_ring, detector.memory[0]
    rate, dispersion = memory.arrivals_per_s, max(1.0, memory.dispersion)
    fires, holds = 0, 0
    for step in (2, 5, 10, 25, 50):
        slot = _slot_before(detector, newest, 0.01 * step - _TINY_S)
        span_s = ring[newest].now_s - ring[slot].now_s
        count = ring[newest].num_arrived - ring[slot].num_arrived
        mean = rate * span_s
        chance = levels.surge_sigmas * np.sqrt(dispersion * mean) + _FEW * dispersion
        if count > levels.surge_fires_ratio * mean and count > mean + chance:
            fires = _SURGE
        if step == 50 and count > levels.surge_holds_ratio * mean and count > mean + chance / 2:
            holds = _SURGE
    return fires, holds | fires


@compiled
def _queue_growth(detector, newest):
    """Return (fires, holds): the shortest queue is late, and grows; or there is none."""
    ring = detector.fleet_ring
    now = ring[newest]
    if not np.isfinite(now.ttft_slo_s):
        return 0, 0
    if now.least_wait_s == np.inf:
        return _GROWTH, _GROWTH
    oldest = _slot_before(detector, newest, SPAN_S - _TINY_S)
    span_s = now.now_s - ring[oldest].now_s
    growth_s = now.least_wait_s - ring[oldest].least_wait_s
    is_late = now.least_wait_s > now.ttft_slo_s
    is_growing = span_s > 0.0 and growth_s > detector.levels[0].growth_s_per_s * span_s
    fires = _GROWTH if is_late and is_growing and np.isfinite(growth_s) else 0
    return fires, _GROWTH if is_late else 0


@compiled
def _added(value, last):
    """What a counter has gained since it was last read; nothing if it has begun anew."""
    gain = value - last
    return gain if 0.0 < gain < _MOST_ADDED else 0.0


@compiled
def _watch(detector, s, r, newest, last):
    """Take in what is heard of a replica; `last` is the slot of the tick before."""
    watch, now_s = detector.watches[r], detector.memory[0].now_s
    gain = _added(s.allocation_failures, watch.allocation_failures)
    detector.failures[newest, r] = detector.failures[last, r] + gain
    if np.isfinite(s.allocation_failures):
        watch.allocation_failures = s.allocation_failures
    # With nothing to do there is nothing to hear, and no one can be silent.
    heard_at_s = s.progress_at_s if s.outstanding_requests > 0.0 else now_s
    if heard_at_s > watch.heard_at_s:
        watch.heard_at_s = min(heard_at_s, now_s)
    if np.isfinite(s.busy_s) and np.isfinite(s.probed_at_s) and s.probed_at_s != watch.probed_at_s:
        probed_s, busy_s = s.probed_at_s - watch.probed_at_s, s.busy_s - watch.busy_s
        is_idle = 0.0 <= busy_s < detector.levels[0].idle_busy_frac * probed_s
        idle_from_s = min(watch.idle_from_s, watch.probed_at_s)
        watch.idle_from_s = idle_from_s if is_idle else np.inf
        watch.probed_at_s, watch.busy_s = s.probed_at_s, s.busy_s


@compiled
def _judge_replica(detector, s, r, newest, oldest):
    """Set a replica's triggers from the samples at both ends of the span."""
    levels, watch = detector.levels[0], detector.watches[r]
    fires, holds = 0, 0
    failures = detector.failures[newest, r] - detector.failures[oldest, r]
    if failures >= levels.num_failures:
        fires |= _FAILURES
    if failures > 0.0:
        holds |= _FAILURES
    if np.isfinite(s.kv_usage_frac):
        if s.kv_usage_frac >= levels.memory_fires_frac:
            fires |= _MEMORY
        if s.kv_usage_frac >= levels.memory_holds_frac:
            holds |= _MEMORY
    if s.outstanding_requests > 0.0 and s.is_available != 0 and np.isfinite(watch.heard_at_s):
        # As far as the newest probe reaches.
        until_s = min(watch.probed_at_s, detector.memory[0].now_s)
        if until_s - max(watch.idle_from_s, watch.heard_at_s) >= SPAN_S - _TINY_S:
            fires |= _IDLE
        quiet_s = detector.memory[0].now_s - watch.heard_at_s - levels.silence_s
        if quiet_s > 0.0 and quiet_s > 2.0 * s.predicted_wait_s:
            fires |= _SILENCE
    if s.pending_tokens > 0.0 and s.is_available != 0:
        stuck_s = detector.memory[0].now_s - s.first_token_at_s - levels.stuck_s
        if stuck_s > 0.0 and stuck_s > 2.0 * s.predicted_wait_s:
            fires |= _STUCK
    detector.fires[r] = fires
    detector.holds[r] = holds | fires


@compiled
def _note_stuck(detector, s, r):
    """Mark a replica whose queue stands still, until all that waited there has its first token."""
    is_stuck = detector.is_stuck[r]
    if detector.fires[r] & _STUCK:
        is_stuck = 1
    elif s.pending_tokens <= 0.0 or s.is_available == 0:
        is_stuck = 0
    if is_stuck != detector.is_stuck[r]:
        detector.is_stuck[r] = is_stuck
        detector.memory[0].num_silences += 1


@compiled
def _note_silence(detector, r):
    """Mark a replica without a sign of life, until one comes or nothing is outstanding there."""
    watch, memory = detector.watches[r], detector.memory[0]
    if detector.is_silent[r] == 0:
        if detector.fires[r] & (_IDLE | _SILENCE):
            detector.is_silent[r] = 1
            watch.silent_from_s = watch.heard_at_s
            memory.num_silences += 1
    elif watch.heard_at_s > watch.silent_from_s:
        detector.is_silent[r] = 0
        memory.num_silences += 1


@compiled
def _average(detector, added, span_s):
    """Take the arrivals of a span into the slow average; the plain mean until it has run in."""
    memory = detector.memory[0]
    lasting_s = min(detector.levels[0].average_s, memory.now_s - memory.begin_s)
    share = min(1.0, span_s / max(lasting_s, span_s))
    memory.arrivals_per_s += share * (added / span_s - memory.arrivals_per_s)
    memory.block_arrived += added
    block_s = memory.now_s - memory.block_from_s
    if block_s < SPAN_S - _TINY_S:
        return
    mean = memory.arrivals_per_s * block_s
    if mean > 0.0:
        excess = (memory.block_arrived - mean) ** 2 / mean
        # A surge is no chance: what is far beyond it adds little.
        excess = min(excess, 9.0 * max(1.0, memory.dispersion), _MOST_EXCESS)
        share = min(1.0, block_s / (lasting_s + _PRIOR_S))
        memory.dispersion += share * (excess - memory.dispersion)
    memory.block_from_s, memory.block_arrived = memory.now_s, 0.0


@compiled
def _take(detector, now, newest, last):
    """Put the fleet's sample into the ring; return what has arrived since the one before."""
    memory = detector.memory[0]
    added = _added(now.num_arrived, memory.num_arrived) if memory.num_ticks > 0 else 0.0
    if np.isfinite(now.num_arrived):
        memory.num_arrived = now.num_arrived
    sum_before = detector.fleet_ring[last].num_arrived
    detector.fleet_ring[newest] = now
    detector.fleet_ring[newest].num_arrived = sum_before + added
    memory.num_ticks += 1
    memory.num_slots = min(memory.num_slots + 1, NUM_SLOTS)
    return added


@compiled
def detect(detector, fleet_signals, signals):
    """Take one moment in and set all triggers; return whether the clock has moved on.

    Shapes: FLEET_SIGNAL_DTYPE [1], REPLICA_SIGNAL_DTYPE [R].
    """
    memory, now_s = detector.memory[0], fleet_signals[0].now_s
    if not (now_s > memory.now_s and np.isfinite(now_s)):
        return False
    span_s = now_s - memory.now_s
    memory.now_s = now_s
    # After a gap the ring says nothing of the last 500 ms.
    if memory.num_ticks == 0:
        memory.begin_s = memory.block_from_s = now_s
    elif span_s > SPAN_S:
        memory.num_slots = 0
    newest, last = memory.num_ticks % NUM_SLOTS, (memory.num_ticks - 1) % NUM_SLOTS
    added = _take(detector, fleet_signals[0], newest, last)
    surge, surge_holds = 0, 0
    if memory.num_ticks > 1:
        if now_s - memory.begin_s >= detector.levels[0].warm_up_s:
            surge, surge_holds = _surge(detector, newest)
        _average(detector, added, span_s)
    growth, growth_holds = _queue_growth(detector, newest)
    memory.fires, memory.holds = surge | growth, surge_holds | growth_holds
    oldest = _slot_before(detector, newest, SPAN_S - _TINY_S)
    for r in range(signals.size):
        _watch(detector, signals[r], r, newest, last)
        _judge_replica(detector, signals[r], r, newest, oldest)
        _note_silence(detector, r)
        _note_stuck(detector, signals[r], r)
    return True
