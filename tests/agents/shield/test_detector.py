"""The detector on made-up signals: broken values, counters that restart, probes, silence."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.agents.shield.controller import Controller, make_controller, tick
from trimtab.agents.shield.emergency_rules import (
    DEFAULT_RULES,
    EmergencyEntry,
    Trigger,
)
from trimtab.agents.shield.signals import make_signals
from trimtab.agents.shield.trigger_levels import TriggerLevels
from trimtab.env.emergency import Emergency

TICK_S = 0.01
KINDS = list(Emergency)
BROKEN = [np.nan, np.inf, -np.inf, -1e300, 1e300]


def signals_of(num_replicas=1):
    """Signals of replicas that work on four requests each."""
    fleet, replicas = make_signals(num_replicas)
    fleet["ttft_slo_s"] = 0.5
    replicas["is_available"] = 1
    replicas["outstanding_requests"] = 4
    return fleet, replicas


def watch(
    core: Controller, fleet, replicas, span_s: float, change: Callable[[float], None]
) -> Iterator[tuple[float, set[Trigger]]]:
    """Tick for a while at 100 arrivals/s; yield moments at which anything fires, and what."""
    start = int(core.detector.memory["num_ticks"][0])
    for i in range(start + 1, start + 1 + round(span_s / TICK_S)):
        now_s = i * TICK_S
        fleet["now_s"] = now_s
        fleet["num_arrived"] += 1
        replicas["busy_s"] += TICK_S
        replicas["probed_at_s"] = now_s
        replicas["progress_at_s"] = replicas["first_token_at_s"] = now_s
        change(now_s)
        tick(core, fleet, replicas)
        fired = int(core.detector.memory["fires"][0]) | int(
            np.bitwise_or.reduce(core.detector.fires)
        )
        if fired:
            yield now_s, {trigger for trigger in Trigger if fired & trigger}


def nothing(now_s):
    pass


SIGNAL_NAMES = (
    *("outstanding_requests", "pending_tokens", "predicted_wait_s", "kv_usage_frac"),
    *("allocation_failures", "busy_s", "probed_at_s", "scraped_at_s", "waiting_requests"),
    *("num_arrived", "arrived_tokens", "num_outstanding", "ttft_slo_s", "least_wait_s"),
)
# These do say something: memory is more than full, everyone waits for ever or nobody serves.
MEANINGFUL = {("kv_usage_frac", 1e300), ("least_wait_s", 1e300), ("least_wait_s", np.inf)}
BROKEN_SIGNALS = [(n, v) for n in SIGNAL_NAMES for v in BROKEN if (n, v) not in MEANINGFUL]


@pytest.mark.parametrize(("name", "value"), BROKEN_SIGNALS)
def test_a_broken_value_fires_nothing_while_the_replica_works(name, value):
    (fleet, replicas), core = signals_of(), make_controller(1)
    assert list(watch(core, fleet, replicas, 3.0, nothing)) == []
    array = fleet if name in fleet.dtype.names else replicas

    def alternate(now_s):
        if name != "num_arrived":
            array[name] = value if round(now_s / TICK_S) % 2 else np.nan
        elif round(now_s / TICK_S) % 2:
            array[name] = value

    before = array[name].copy()
    assert list(watch(core, fleet, replicas, 1.0, alternate)) == []
    array[name] = before
    assert list(watch(core, fleet, replicas, 1.0, nothing)) == []


def test_when_nobody_serves_the_spill_tier_takes_over_at_once():
    (fleet, replicas), core = signals_of(), make_controller(1)
    fleet["num_spill"] = 1
    assert list(watch(core, fleet, replicas, 3.0, nothing)) == []
    fleet["least_wait_s"] = np.inf
    moment_s, fired = next(watch(core, fleet, replicas, 1.0, nothing))
    assert moment_s == pytest.approx(3.01)
    assert fired == {Trigger.QUEUE_GROWTH}
    num = int(core.detector.memory["num_transitions"][0])
    begun = [KINDS[row["kind"]] for row in core.transitions[:num]]
    assert Emergency.SPILL_SHORT in begun


def test_an_empty_fleet_that_nobody_has_asked_for_anything_is_at_rest():
    (fleet, replicas), core = signals_of(), make_controller(1)
    fleet["least_wait_s"], fleet["ttft_slo_s"] = np.inf, np.inf
    assert list(watch(core, fleet, replicas, 3.0, nothing)) == []


def test_a_page_that_is_read_out_of_turn_is_no_failure():
    (fleet, replicas), core = signals_of(), make_controller(1)
    counts = iter([998, 1000] * 60)
    replicas["allocation_failures"] = 1000

    def swap(now_s):
        if round(now_s / TICK_S) % 30 == 0:
            replicas["allocation_failures"] = next(counts)

    # Two failures come and go every 600 ms; three within 500 ms would fire.
    assert list(watch(core, fleet, replicas, 20.0, swap)) == []


def test_failures_from_before_the_first_page_are_old():
    (fleet, replicas), core = signals_of(), make_controller(1)
    replicas["allocation_failures"] = np.nan
    assert list(watch(core, fleet, replicas, 3.0, nothing)) == []
    replicas["allocation_failures"] = 1000
    assert list(watch(core, fleet, replicas, 3.0, nothing)) == []


def test_an_engine_that_has_started_anew_is_watched_from_its_first_page():
    (fleet, replicas), core = signals_of(), make_controller(1)
    replicas["allocation_failures"] = 1000
    assert list(watch(core, fleet, replicas, 3.0, nothing)) == []
    replicas["allocation_failures"] = 0
    assert list(watch(core, fleet, replicas, 0.02, nothing)) == []
    replicas["allocation_failures"] = 3
    moment_s, fired = next(watch(core, fleet, replicas, 1.0, nothing))
    assert moment_s == pytest.approx(3.03)
    assert fired == {Trigger.ALLOCATION_FAILURES}


def test_a_gateway_that_has_started_anew_still_sees_a_surge():
    (fleet, replicas), core = signals_of(), make_controller(1)
    assert list(watch(core, fleet, replicas, 20.0, nothing)) == []
    fleet["num_arrived"] = 0.0
    assert list(watch(core, fleet, replicas, 0.05, nothing)) == []

    def surge(now_s):
        fleet["num_arrived"] += 19.0

    moment_s, fired = next(watch(core, fleet, replicas, 1.0, surge))
    assert moment_s - 20.05 <= 2 * TICK_S + 1e-9
    assert fired == {Trigger.SURGE}


@pytest.mark.parametrize(("rate_rps", "factor"), [(20.0, 1), (20.0, 4), (400.0, 4)])
def test_steady_arrivals_in_batches_are_no_surge(rate_rps, factor):
    (fleet, replicas), core = signals_of(), make_controller(1)
    rng, num_fired = np.random.default_rng(7), 0
    for i in range(1, 15_001):
        fleet["now_s"] = replicas["progress_at_s"] = i * TICK_S
        fleet["num_arrived"] += factor * rng.poisson(rate_rps * TICK_S / factor)
        tick(core, fleet, replicas)
        num_fired += int(core.detector.memory["fires"][0] != 0)
    assert num_fired == 0
    assert core.detector.memory["dispersion"][0] == pytest.approx(factor, rel=0.5)


def test_a_surge_that_stays_becomes_the_new_normal():
    (fleet, replicas), core = signals_of(), make_controller(1)
    assert list(watch(core, fleet, replicas, 20.0, nothing)) == []

    def surge(now_s):
        fleet["num_arrived"] += 4.0

    moments_s = [moment_s for moment_s, _ in watch(core, fleet, replicas, 120.0, surge)]
    assert moments_s[0] < 20.1
    # Five times the arrivals: twice the average until that has come up to 2.5 times the old.
    assert 25.0 < moments_s[-1] < 45.0


@pytest.mark.parametrize("probe_s", [0.01, 0.1, 1.0])
def test_an_idle_replica_with_work_is_found_whatever_the_pace_of_its_probe(probe_s):
    (fleet, replicas), core = signals_of(2), make_controller(2)
    busy_s, read_s, heard_s = np.zeros(2), np.zeros(2), np.zeros(2)
    stalls_at_s = 5.0

    def probe(now_s):
        # The first is in a prefill of 0.9 s again and again; the other stalls.
        busy_s[0] = now_s
        busy_s[1] = min(now_s, stalls_at_s)
        heard_s[0] = 0.9 * np.floor(now_s / 0.9 + 1e-9)
        heard_s[1] = min(now_s, stalls_at_s)
        if round(now_s / TICK_S) % round(probe_s / TICK_S) == 0:
            read_s[:] = busy_s
            replicas["probed_at_s"] = now_s
        else:
            replicas["probed_at_s"] = np.floor(now_s / probe_s + 1e-9) * probe_s
        replicas["busy_s"] = read_s
        replicas["progress_at_s"] = heard_s
        replicas["predicted_wait_s"] = 5.0

    fires = list(watch(core, fleet, replicas, 9.0, probe))
    assert list(core.detector.is_silent) == [0, 1]
    assert {trigger for _, fired in fires for trigger in fired} == {Trigger.IDLE_SURGE}
    assert 0.5 <= fires[0][0] - stalls_at_s + 1e-9 <= max(0.5, probe_s) + probe_s + TICK_S


def test_a_silence_is_one_however_long_it_lasts():
    (fleet, replicas), core = signals_of(), make_controller(1)
    assert list(watch(core, fleet, replicas, 2.0, nothing)) == []

    def stall(now_s):
        replicas["progress_at_s"] = 2.0

    assert len(list(watch(core, fleet, replicas, 8.0, stall))) == 700
    assert core.detector.memory["num_silences"][0] == 1
    # It is out of reach now: no trigger, and still no sign of life.
    replicas["is_available"] = 0
    assert list(watch(core, fleet, replicas, 2.0, stall)) == []
    assert core.detector.is_silent[0] == 1
    # What it had is taken elsewhere.
    replicas["outstanding_requests"] = 0
    assert list(watch(core, fleet, replicas, 1.0, stall)) == []
    assert core.detector.is_silent[0] == 0
    assert core.detector.memory["num_silences"][0] == 2


def test_a_replica_whose_wait_is_unknown_is_not_called_silent():
    (fleet, replicas), core = signals_of(), make_controller(1)
    replicas["predicted_wait_s"] = np.nan

    def mute(now_s):
        replicas["progress_at_s"] = 0.5

    assert list(watch(core, fleet, replicas, 5.0, mute)) == []


MOMENTS = st.floats(-10, 30) | st.sampled_from([np.nan, np.inf, -np.inf, 1e300])


@settings(max_examples=40)
@given(
    moments=st.lists(
        st.tuples(MOMENTS, MOMENTS, st.sampled_from([0.0, 1.0, np.nan]), st.integers(0, 1)),
        min_size=50,
        max_size=200,
    )
)
def test_silence_comes_and_goes_no_faster_than_it_takes_to_notice(moments):
    (fleet, replicas), core = signals_of(), make_controller(1)
    for i, (heard_s, probed_s, outstanding, is_available) in enumerate(moments):
        fleet["now_s"] = now_s = i * 0.05
        replicas["progress_at_s"], replicas["probed_at_s"] = heard_s, probed_s
        replicas["outstanding_requests"] = outstanding
        replicas["is_available"] = is_available
        tick(core, fleet, replicas)
    # The first may come at once; each further one needs half a second without a sign.
    assert core.detector.memory["num_silences"][0] <= 2 * (now_s / 0.5 + 1)


def test_equal_signals_lead_to_equal_states():
    def state(seed):
        rng, core = np.random.default_rng(seed), make_controller(3)
        fleet, replicas = signals_of(3)

        def storm(now_s):
            fleet["num_arrived"] += rng.poisson(2)
            fleet["least_wait_s"] = rng.exponential()
            for name in ("kv_usage_frac", "predicted_wait_s"):
                replicas[name] = rng.random(3)
            replicas["allocation_failures"] += rng.poisson(0.01, 3)

        fired = list(watch(core, fleet, replicas, 10.0, storm))
        return fired, core.machines.tobytes(), core.detector.watches.tobytes()

    assert state(1) == state(1)
    assert state(1) != state(2)


def test_an_unmet_precondition_is_counted_by_kind_once_a_cool_down():
    (fleet, replicas), core = signals_of(), make_controller(1)
    assert list(watch(core, fleet, replicas, 3.0, nothing)) == []
    replicas["kv_usage_frac"] = 0.99
    assert len(list(watch(core, fleet, replicas, 2.5, nothing))) == 250
    unmet = dict(zip(KINDS, core.num_unmet, strict=True))
    # Nobody has room for its KV: called for at 0, 1 and 2 s.
    assert {kind for kind, num in unmet.items() if num} == {Emergency.MOVE_KV}
    assert unmet[Emergency.MOVE_KV] == 3


def test_levels_are_of_effect_and_refused_where_they_make_no_sense():
    (fleet, replicas), core = signals_of(), make_controller(1, levels=TriggerLevels(num_failures=1))
    assert list(watch(core, fleet, replicas, 1.0, nothing)) == []
    replicas["allocation_failures"] = 1
    assert next(watch(core, fleet, replicas, 1.0, nothing))[1] == {Trigger.ALLOCATION_FAILURES}
    with pytest.raises(ValueError, match=r"memory_fires_frac .* at most 1, got 97"):
        TriggerLevels(memory_fires_frac=97)
    with pytest.raises(ValueError, match=r"surge_sigmas must be above 0 .* got nan"):
        TriggerLevels(surge_sigmas=np.nan)
    with pytest.raises(ValueError, match=r"surge_holds_ratio .* surge_fires_ratio \(2\), got 3"):
        TriggerLevels(surge_holds_ratio=3)
    with pytest.raises(ValueError, match=r"surge_holds_ratio must be at least 1, got 0.5"):
        TriggerLevels(surge_holds_ratio=0.5)


def test_only_what_is_done_at_once_lasts_no_time():
    rules = {rule.kind: rule for rule in DEFAULT_RULES}
    assert EmergencyEntry(amount=0).rule(Emergency.FREEZE_KV_GROWTH).amount == 0
    with pytest.raises(ValueError, match="max_s of shed must be above 0 s, got 0"):
        EmergencyEntry(max_s=0).rule(Emergency.SHED)
    with pytest.raises(ValueError, match="max_s of move_kv must be 0 s, as it is done at once"):
        EmergencyEntry(max_s=3).rule(Emergency.MOVE_KV)
    with pytest.raises(ValueError, match="shed has no triggers; set is_on to false"):
        replace(rules[Emergency.SHED], triggers=Trigger(0))
