"""What comes into a rack's aggregator is used or counted; what goes out, the hub understands."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from racks import (
    ACTIVITY,
    CELSIUS,
    SM,
    FakeProbe,
    exchange_clocks,
    greet,
    make_aggregator,
    make_layout,
    make_probes,
    run_ticks,
)  # fmt: skip

from trimtab.env.state.feature import Node
from trimtab.env.state.registry import column
from trimtab.runtime.telemetry.aggregator import Aggregator, AggregatorConfig
from trimtab.runtime.telemetry.fleet_layout import fleet_of_racks
from trimtab.runtime.telemetry.frames import MAX_FRAME_BYTES, Sample, encode
from trimtab.runtime.telemetry.hub import Hub
from trimtab.runtime.telemetry.probe_trust import PROBATION_TICKS, STILL_TICKS
from trimtab.runtime.telemetry.rack_frames import decode_rack_frame
from trimtab.runtime.telemetry.reasons import Reason
from trimtab.runtime.telemetry.signals import Scope

Start = tuple[Aggregator, list[FakeProbe], Hub]


def start(offset_s: float = 0.0) -> Start:
    layout = make_layout()
    aggregator, probes = make_aggregator(layout), make_probes(layout, offset_s)
    greet(aggregator, probes)
    return aggregator, probes, Hub(fleet_of_racks([layout]))


def show(aggregator: Aggregator, hub: Hub, now_s: float) -> None:
    for frame in aggregator.tick(now_s):
        hub.ingest(frame, now_s)


def test_a_value_reaches_the_state_with_its_age():
    aggregator, probes, hub = start()
    probes[0].activity = 0.25
    aggregator.ingest(probes[0].sample(0.95), 0.96)
    show(aggregator, hub, 1.0)
    state = hub.state(1.05)
    assert state.values[Node.GPU][:2, SM] == pytest.approx([0.25, 0.25], abs=0.025)
    assert state.is_valid[Node.GPU][:2, CELSIUS].all()
    assert not state.is_valid[Node.GPU][2:].any()
    assert state.age_s[Node.GPU][:2] == pytest.approx([0.1, 0.1], abs=1e-3)
    assert np.isinf(state.age_s[Node.GPU][2:]).all()
    assert state.age_s[Node.SERVER][0] == state.age_s[Node.REPLICA][0]


def test_a_clock_that_is_off_by_half_a_second_does_not_age_samples():
    aggregator, probes, hub = start(offset_s=-0.5)
    for t in range(10):
        exchange_clocks(aggregator, probes, 0.1 * t)
    aggregator.ingest(probes[0].sample(0.95), 0.96)
    show(aggregator, hub, 1.0)
    assert hub.state(1.0).age_s[Node.SERVER][0] == pytest.approx(0.05, abs=1e-3)
    round_trip_s = hub.state(1.0).feature(Node.SERVER, "rtt_s")[0]
    assert round_trip_s == pytest.approx(0.0004, rel=0.05)


def test_clocks_are_asked_often_at_first_and_then_once_a_second():
    aggregator, probes, _ = start()
    asked = []
    for t in range(1, 100):
        exchange = aggregator.pings(0.1 * t)
        asked.append(len(exchange))
        by_name = {probe.name: probe for probe in probes}
        for name, body in exchange:
            aggregator.ingest(by_name[name].answer(body, 0.1 * t), 0.1 * t)
    assert sum(asked[:7]) >= 2 * 6
    assert sum(asked[40:90]) == 2 * 5


HOSTILE: dict[str, tuple[Reason, Callable[[FakeProbe], bytes]]] = {
    "no frame": (Reason.MALFORMED, lambda p: b"\xff\x00junk"),
    "nothing": (Reason.MALFORMED, lambda p: b""),
    "10 MB": (Reason.TOO_LARGE, lambda p: bytes(10 * 1024 * 1024)),
    "just too large": (Reason.TOO_LARGE, lambda p: bytes(MAX_FRAME_BYTES + 1)),
    "other schema": (
        Reason.WRONG_SCHEMA,
        lambda p: encode(
            Sample(schema=99, probe=p.name, epoch=1, sequence=0, sampled_at_s=0.0,
                   sent_at_s=0.0, blocks={})
        ),
    ),
    "stranger": (
        Reason.UNKNOWN_PROBE,
        lambda p: encode(
            Sample(probe="nobody", epoch=1, sequence=0, sampled_at_s=0.0, sent_at_s=0.0, blocks={})
        ),
    ),
    "other signals": (Reason.WRONG_SIGNALS, lambda p: p.hello(epoch=2, signals_hash="old")),
    "other rack": (Reason.UNKNOWN_PROBE, lambda p: p.hello(epoch=2, rack="elsewhere")),
    "other GPUs": (Reason.WRONG_SHAPE, lambda p: p.hello(epoch=2, gpus=["a", "b", "c"])),
    "old hello": (Reason.OLD_EPOCH, lambda p: p.hello(epoch=0)),
    "short block": (
        Reason.WRONG_SHAPE,
        lambda p: p.sample(0.95, blocks={Scope.GPU: np.zeros((1, 3), np.float32)}),
    ),
    "unknown scope": (
        Reason.WRONG_SHAPE,
        lambda p: p.sample(0.95, blocks={"rack": np.zeros((1, 3), np.float32)}),
    ),
    "from the future": (Reason.FROM_FUTURE, lambda p: p.sample(30.0)),
    "late": (Reason.LATE, lambda p: p.sample(-30.0)),
    "huge moment": (Reason.FROM_FUTURE, lambda p: p.sample(9e11)),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_frame_is_counted_and_changes_nothing(name: str):
    aggregator, probes, hub = start()
    reason, make = HOSTILE[name]
    aggregator.ingest(make(probes[0]), 1.0)
    assert aggregator.counts.total == aggregator.counts[reason] == 1
    show(aggregator, hub, 1.0)
    assert np.isinf(hub.state(1.0).age_s[Node.GPU]).all()


@pytest.mark.parametrize(
    ("value", "reason"),
    [(np.inf, Reason.NOT_FINITE), (-np.inf, Reason.NOT_FINITE), (3e38, Reason.OUT_OF_RANGE),
     (-5.0, Reason.OUT_OF_RANGE)],
)  # fmt: skip
def test_a_value_that_cannot_be_becomes_absent_and_is_counted(value: float, reason: Reason):
    aggregator, probes, hub = start()
    blocks = probes[0].blocks()
    blocks[Scope.GPU][1, ACTIVITY] = value
    aggregator.ingest(probes[0].sample(0.95, sequence=0, blocks=blocks), 0.96)
    show(aggregator, hub, 1.0)
    state = hub.state(1.0)
    assert state.is_valid[Node.GPU][:2, SM].tolist() == [True, False]
    assert state.is_valid[Node.GPU][:2, CELSIUS].all()
    assert aggregator.counts.of_probe(probes[0].name) == {reason: 1}


def test_nan_is_absence_and_no_fault():
    aggregator, probes, hub = start()
    blocks = probes[0].blocks()
    blocks[Scope.GPU][:] = np.nan
    aggregator.ingest(probes[0].sample(0.95, sequence=0, blocks=blocks), 0.96)
    show(aggregator, hub, 1.0)
    assert not hub.state(1.0).is_valid[Node.GPU].any()
    assert aggregator.counts.total == 0


def test_duplicates_reordering_loss_and_old_epochs_are_told_apart():
    aggregator, probes, _ = start()
    probe = probes[0]
    for sequence in (0, 1, 1, 4, 3, 0):
        aggregator.ingest(probe.sample(0.9 + 0.01 * sequence, sequence=sequence), 0.95)
    counts = aggregator.counts
    assert counts[Reason.LOST] == 2
    assert counts[Reason.DUPLICATE] == 2
    assert counts[Reason.OUT_OF_ORDER] == 1
    before = FakeProbe(probe.layout, 0, epoch=1)
    probe.epoch = 2
    aggregator.ingest(probe.sample(0.95, sequence=0), 0.96)
    assert counts[Reason.UNKNOWN_PROBE] == 1  # its hello is not there yet
    aggregator.ingest(probe.hello(), 0.96)
    aggregator.ingest(before.sample(0.96, sequence=9), 0.97)
    assert counts[Reason.OLD_EPOCH] == 1
    aggregator.ingest(probe.sample(0.97, sequence=0), 0.98)
    assert counts.total == 7


def test_a_sequence_that_leaps_ahead_does_not_lock_its_probe_out():
    aggregator, probes, _ = start()
    aggregator.ingest(probes[0].sample(0.9, sequence=0), 0.91)
    aggregator.ingest(probes[0].sample(0.91, sequence=2**62), 0.92)
    aggregator.ingest(probes[0].sample(0.92, sequence=1), 0.93)
    assert aggregator.counts.of_probe(probes[0].name) == {Reason.UNRELIABLE: 1}


def test_samples_beyond_what_a_tick_holds_leave_the_newest():
    aggregator, probes, hub = start()
    for i in range(40):
        probes[0].activity = i / 40
        aggregator.ingest(probes[0].sample(0.9 + 0.001 * i), 0.95)
    assert aggregator.counts[Reason.DROPPED] == 40 - 16
    show(aggregator, hub, 1.0)
    assert hub.state(1.0).values[Node.GPU][0, SM] == pytest.approx(39 / 40, abs=0.025)


def test_a_probe_whose_counters_stand_still_is_masked_until_it_mends():
    aggregator, probes, hub = start()
    honest, liar = probes
    now_s = 0.0
    for t in range(STILL_TICKS + 2):
        now_s = 1.0 + 0.1 * t
        aggregator.ingest(honest.sample(now_s - 0.01), now_s)
        blocks = liar.blocks()
        aggregator.ingest(liar.sample(now_s - 0.01, sequence=t, blocks=blocks), now_s)
        show(aggregator, hub, now_s)
    state = hub.state(now_s)
    assert aggregator.is_distrusted.tolist() == [False, True]
    assert state.is_valid[Node.GPU][:2, SM].all()
    assert not state.is_valid[Node.GPU][2:].any()
    liar.sequence = STILL_TICKS + 2
    for _ in range(PROBATION_TICKS + 2):
        now_s += 0.1
        aggregator.ingest(liar.sample(now_s - 0.01), now_s)
        show(aggregator, hub, now_s)
    assert not aggregator.is_distrusted.any()
    assert hub.state(now_s).is_valid[Node.GPU][2:, SM].all()
    assert aggregator.counts.of_probe(liar.name)[Reason.UNRELIABLE] > 0


def test_a_probe_whose_clock_contradicts_itself_is_distrusted():
    aggregator, probes, _ = start()
    for t in range(20):
        probes[1].offset_s = 0.3 * (t % 3)
        exchange_clocks(aggregator, probes, 1.0 + 0.2 * t)
        aggregator.tick(1.0 + 0.2 * t)
    assert aggregator.is_distrusted.tolist() == [False, True]
    assert aggregator.counts.of_probe(probes[1].name)[Reason.UNRELIABLE] >= 3


def test_an_answer_to_no_question_is_counted():
    aggregator, probes, _ = start()
    ((name, body), *_) = aggregator.pings(5.0)
    assert name == probes[0].name
    answer = probes[0].answer(body, 5.0)
    aggregator.ingest(answer, 5.001)
    aggregator.ingest(answer, 5.002)
    aggregator.ingest(body, 5.002)
    assert aggregator.counts[Reason.DUPLICATE] == 1
    assert aggregator.counts[Reason.UNKNOWN_PROBE] == 1


def test_a_step_is_reported_once_with_what_it_was_before():
    aggregator, probes, hub = start()
    for frame in run_ticks(aggregator, probes, 0.1, 80):
        hub.ingest(frame, 8.2)
    assert not hub.changes
    probes[1].activity = 0.9
    for frame in run_ticks(aggregator, probes, 8.1, 20):
        hub.ingest(frame, 10.2)
    found = {(c.node, c.row, c.feature) for c in hub.changes}
    assert found == {(Node.GPU, 2, "sm_activity_frac"), (Node.GPU, 3, "sm_activity_frac")}
    assert len(hub.changes) == 2
    assert hub.changes[0].before == pytest.approx(0.5, abs=0.05)
    assert hub.changes[0].after == pytest.approx(0.9, abs=0.01)
    assert 8.1 <= hub.changes[0].at_s <= 9.1


def test_sketches_of_a_span_reach_the_hub():
    layout = make_layout()
    config = AggregatorConfig(sketch_every_ticks=1, sketch_span_ticks=20)
    aggregator, probes = make_aggregator(layout, config=config), make_probes(layout)
    greet(aggregator, probes)
    probes[0].activity, probes[1].activity = 0.25, 0.75
    hub = Hub(fleet_of_racks([layout]))
    for frame in run_ticks(aggregator, probes, 0.1, 60):
        hub.ingest(frame, 6.2)
    sketch = hub.sketch(Node.GPU, "sm_activity_frac")
    assert sketch.num_values == 20 * 4
    assert sketch.quantiles([0.1, 0.9]) == pytest.approx([0.25, 0.75])
    assert 0 < sketch.rank_error < 0.05
    empty = hub.sketch(Node.GPU, "fp64_activity_frac", rack="r0")
    assert np.isnan(empty.quantiles([0.5])).all()
    with pytest.raises(ValueError, match="unknown rack 'r9'"):
        hub.sketch(Node.GPU, "sm_activity_frac", rack="r9")


def test_keys_come_when_they_are_due_or_asked_for():
    layout = make_layout()
    aggregator, probes = make_aggregator(layout), make_probes(layout)
    greet(aggregator, probes)
    frames = [decode_rack_frame(body) for body in run_ticks(aggregator, probes, 0.1, 101)]
    assert [i for i, frame in enumerate(frames) if frame.is_key] == [0, 50, 100]
    aggregator.request_key()
    assert decode_rack_frame(aggregator.tick(20.0)[0]).is_key
    assert not decode_rack_frame(aggregator.tick(20.1)[0]).is_key


@given(
    order=st.permutations(range(8)),
    again=st.lists(st.integers(0, 7), max_size=4),
    junk=st.binary(max_size=40),
)
@settings(max_examples=25)
def test_a_servers_moment_never_goes_back(order: list[int], again: list[int], junk: bytes):
    aggregator, probes, hub = start()
    bodies = [probes[0].sample(0.5 + 0.05 * i, sequence=i) for i in range(8)]
    newest = -np.inf
    for i in [*order, *again]:
        aggregator.ingest(bodies[i], 1.0)
        aggregator.ingest(junk, 1.0)
        show(aggregator, hub, 1.0)
        at_s = hub.sampled_at_s[0]
        assert not at_s < newest
        newest = at_s
    used = 12 if len(again) == 4 else 8 + len(again)
    refused = aggregator.counts[Reason.DUPLICATE] + aggregator.counts[Reason.OUT_OF_ORDER]
    assert refused <= used
    assert aggregator.counts[Reason.MALFORMED] + aggregator.counts[Reason.WRONG_SCHEMA] == used


def test_error_of_what_the_hub_has_is_within_what_is_stated():
    aggregator, probes, hub = start()
    random = np.random.default_rng(0)
    for t in range(60):
        probes[0].activity = float(np.clip(0.5 + 0.1 * random.standard_normal(), 0, 1))
        for frame in run_ticks(aggregator, probes, 0.1 * (t + 1), 1):
            hub.ingest(frame, 0.1 * (t + 1))
        shown = hub.state(0.1 * (t + 1)).values[Node.GPU][0, column(Node.GPU, "sm_activity_frac")]
        assert abs(shown - probes[0].activity) <= aggregator.largest_error
