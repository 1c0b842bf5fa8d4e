"""The hub's state never goes back, never hides a loss, and says how old it is."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from racks import SM, greet, make_aggregator, make_layout, make_probes, run_ticks

from trimtab.env.state.feature import Node
from trimtab.env.state.registry import column
from trimtab.runtime.telemetry.fleet_layout import NONE, fleet_of_racks, rows_by_name
from trimtab.runtime.telemetry.frames import encode
from trimtab.runtime.telemetry.hub import Hub
from trimtab.runtime.telemetry.rack_frames import RackFrame, decode_rack_frame
from trimtab.runtime.telemetry.rack_layout import RackLayout, ServerPlace
from trimtab.runtime.telemetry.reasons import Reason


def make_frames(num_ticks: int = 12, *, epoch: int = 1, start_s: float = 0.1) -> list[bytes]:
    """Frames of a rack whose activity is a hundredth of the tick's number."""
    layout = make_layout()
    aggregator, probes = make_aggregator(layout, epoch=epoch), make_probes(layout)
    greet(aggregator, probes)
    frames = []
    for t in range(num_ticks):
        for probe in probes:
            probe.activity = 0.05 * t
        frames += run_ticks(aggregator, probes, start_s + 0.1 * t, 1)
    return frames


FRAMES = make_frames()


def make_hub() -> Hub:
    return Hub(fleet_of_racks([make_layout()], num_zones=1, num_tenants=2))


def changed(frame: bytes, /, **fields: object) -> bytes:
    return encode(msgspec.structs.replace(decode_rack_frame(frame), **fields))


def test_never_heard_of_is_infinitely_old_and_masked():
    state = make_hub().state(5.0)
    for node in Node:
        assert np.isinf(state.age_s[node]).all()
        assert not state.is_valid[node].any()


def test_values_are_masked_when_their_server_fell_silent():
    hub = make_hub()
    for frame in FRAMES:
        hub.ingest(frame, 1.3)
    assert hub.state(1.3).is_valid[Node.GPU][:, SM].all()
    late = hub.state(7.0)
    assert not late.is_valid[Node.GPU].any()
    assert late.age_s[Node.GPU] == pytest.approx([5.81] * 4, abs=1e-3)


@given(order=st.permutations(range(12)), again=st.lists(st.integers(0, 11), max_size=5))
@settings(max_examples=30)
def test_frames_in_any_order_never_move_the_state_back(order: list[int], again: list[int]):
    hub = make_hub()
    newest_s, shown = -np.inf, -np.inf
    for i in [*order, *again]:
        hub.ingest(FRAMES[i], 1.3)
        state = hub.state(1.3)
        at_s = hub.sampled_at_s[0]
        assert not at_s < newest_s
        newest_s = at_s
        value = state.values[Node.GPU][0, SM]
        if state.is_valid[Node.GPU][0, SM]:
            assert value >= shown  # the activity only ever grew
            shown = value
            assert abs(value - 0.5 * (at_s + 0.01 - 0.1)) <= 0.03


@given(lost=st.lists(st.booleans(), min_size=12, max_size=12))
@settings(max_examples=30)
def test_after_a_loss_values_grow_old_until_a_key(lost: list[bool]):
    hub = make_hub()
    for body, is_lost in zip(FRAMES, lost, strict=True):
        if not is_lost:
            hub.ingest(body, 1.3)
    num_read = lost.index(True) if True in lost else 12
    if num_read == 0:
        assert np.isnan(hub.sampled_at_s).all()
    else:
        assert hub.sampled_at_s[0] == pytest.approx(0.1 * num_read - 0.01)
    kept = [i for i, is_lost in enumerate(lost) if not is_lost]
    expected = kept[-1] - kept[0] + 1 - len(kept) if kept else 0
    assert hub.counts[Reason.LOST] == expected
    wants = bool(kept) and (num_read == 0 or num_read <= kept[-1])
    assert hub.wanted_keys(1.3) == (["r0"] if wants else ([] if kept else ["r0"]))


def test_a_new_key_heals_a_loss():
    layout = make_layout()
    aggregator, probes = make_aggregator(layout), make_probes(layout)
    greet(aggregator, probes)
    hub = make_hub()
    frames = run_ticks(aggregator, probes, 0.1, 5)
    for frame in (*frames[:2], *frames[3:]):
        hub.ingest(frame, 1.0)
    assert hub.wanted_keys(1.0) == ["r0"]
    assert hub.wanted_keys(1.5) == []  # once a second is enough
    aggregator.request_key()
    probes[0].activity = 0.9
    hub.ingest(run_ticks(aggregator, probes, 0.6, 1)[0], 1.0)
    assert hub.state(1.0).values[Node.GPU][0, SM] == pytest.approx(0.9, abs=0.02)
    assert hub.wanted_keys(3.0) == []


def test_a_restarted_aggregator_with_older_moments_is_held_back_until_it_catches_up():
    hub = make_hub()
    for frame in FRAMES:
        hub.ingest(frame, 1.3)
    before = hub.state(1.3).values[Node.GPU][0, SM]
    again = make_frames(14, epoch=2, start_s=0.1)
    for body in again[:11]:
        hub.ingest(body, 1.4)
        assert hub.sampled_at_s[0] == pytest.approx(1.19)
        assert hub.state(1.4).values[Node.GPU][0, SM] == before
    for body in again[11:]:
        hub.ingest(body, 1.5)
    assert hub.sampled_at_s[0] == pytest.approx(1.39)
    assert hub.state(1.5).values[Node.GPU][0, SM] == pytest.approx(0.65, abs=0.025)


HOSTILE = {
    "no frame": (Reason.MALFORMED, b"\xc1junk"),
    "10 MB": (Reason.TOO_LARGE, bytes(10 * 1024 * 1024)),
    "other schema": (Reason.WRONG_SCHEMA, changed(FRAMES[0], schema=7)),
    "unknown rack": (Reason.UNKNOWN_PROBE, changed(FRAMES[0], rack="r9")),
    "other registry": (Reason.WRONG_SIGNALS, changed(FRAMES[0], registry_hash="old")),
    "other layout": (Reason.WRONG_SHAPE, changed(FRAMES[0], layout_hash="old")),
    "too few ages": (Reason.WRONG_SHAPE, changed(FRAMES[0], ages=b"\0")),
    "from the future": (Reason.FROM_FUTURE, changed(FRAMES[0], at_s=1e6)),
    "broken body": (Reason.MALFORMED, changed(FRAMES[0], body=b"junk")),
    "wrong check": (Reason.MALFORMED, changed(FRAMES[0], check=1)),
    "negative sequence": (Reason.MALFORMED, changed(FRAMES[0], sequence=-1)),
    "not a number": (Reason.MALFORMED, changed(FRAMES[0], at_s=float("nan"))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_frame_is_counted_and_changes_nothing(name: str):
    reason, body = HOSTILE[name]
    hub = make_hub()
    hub.ingest(body, 1.3)
    assert hub.counts.total == hub.counts[reason] == 1
    assert np.isinf(hub.state(1.3).age_s[Node.GPU]).all()
    assert not hub.state(1.3).is_valid[Node.GPU].any()


def test_broken_sketches_and_changes_of_no_cell_are_harmless():
    hub = make_hub()
    fields = msgspec.structs.asdict(decode_rack_frame(FRAMES[0]))
    fields |= {"sketches": [(0, b"junk"), (10**9, b"")], "changes": [(10**9, 0.0, 1.0)]}
    body = encode(msgspec.convert(fields, RackFrame))
    hub.ingest(body, 1.3)
    assert hub.counts.by_reason[Reason.MALFORMED] == 2
    assert not hub.changes
    assert hub.state(1.3).is_valid[Node.GPU][:, SM].all()


def test_what_the_gateway_puts_is_kept_apart_from_racks_and_grows_old_by_itself():
    hub = make_hub()
    hub.ingest(FRAMES[0], 0.2)
    hub.put(Node.TENANT, {"waiting_requests": [3.0, np.nan]}, 1.0)
    hub.put(Node.SERVER, {"outstanding_requests": [7.0, 8.0]}, 1.0)
    for frame in FRAMES[1:]:
        hub.ingest(frame, 1.3)
    state = hub.state(1.3)
    waiting = column(Node.TENANT, "waiting_requests")
    assert state.is_valid[Node.TENANT][:, waiting].tolist() == [True, False]
    assert state.age_s[Node.TENANT] == pytest.approx([0.3, 0.3])
    assert state.feature(Node.SERVER, "outstanding_requests").tolist() == [7.0, 8.0]
    hub.put(Node.TENANT, {"waiting_requests": [9.0, 9.0]}, 0.5)
    assert hub.counts[Reason.OUT_OF_ORDER] == 1
    assert hub.state(1.3).values[Node.TENANT][0, waiting] == 3.0
    assert not hub.state(6.5).is_valid[Node.TENANT].any()
    with pytest.raises(ValueError, match=r"'waiting_requests' must have shape \(2,\), got \(3,\)"):
        hub.put(Node.TENANT, {"waiting_requests": [1.0, 2.0, 3.0]}, 2.0)
    with pytest.raises(ValueError, match="unknown tenant feature 'nonsense'"):
        hub.put(Node.TENANT, {"nonsense": [1.0, 2.0]}, 2.0)


def test_state_is_a_copy():
    hub = make_hub()
    hub.ingest(FRAMES[0], 0.2)
    hub.state(0.2).values[Node.GPU][:] = -1.0
    assert (hub.state(0.2).values[Node.GPU][:, SM] >= 0.0).all()


def test_racks_of_uneven_servers_stand_side_by_side_without_padding():
    places = (
        ServerPlace(server="a", probe="a", num_gpus=1, num_replicas=2, num_links=1),
        ServerPlace(server="b", probe="b", num_gpus=3, num_links=2),
    )
    racks = [RackLayout(rack="x", servers=places), make_layout()]
    fleet = fleet_of_racks(racks)
    assert fleet.rows[0][Node.GPU].tolist() == [0, NONE, NONE, 1, 2, 3]
    assert fleet.rows[0][Node.REPLICA].tolist() == [0, 1, NONE, NONE]
    assert fleet.gpu_server.tolist() == [0, 1, 1, 1, 2, 2, 3, 3]
    assert fleet.rows[1][Node.LINK].tolist() == [3, 4, 5, 6]


def test_a_fleet_with_an_order_of_its_own_is_followed():
    places = (ServerPlace(server="a", probe="a", num_gpus=2, num_replicas=1, num_links=1),)
    racks = [RackLayout(rack="x", servers=places)]
    rows = {Node.GPU: {"a": [5, 3]}, Node.REPLICA: {"a": [1]}, Node.LINK: {"a": [0]}}
    (found,) = rows_by_name(racks, ["z", "a"], rows)
    assert found[Node.GPU].tolist() == [5, 3]
    assert found[Node.SERVER].tolist() == [1]
    with pytest.raises(ValueError, match="has server 'a', which the fleet has not"):
        rows_by_name(racks, ["z"], rows)
    with pytest.raises(ValueError, match="'a' has 2 gpu rows in rack 'x', but 1 in the fleet"):
        rows_by_name(racks, ["a"], rows | {Node.GPU: {"a": [5]}})


def test_layouts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="num_gpus of server 's' must be at least 0, got -1"):
        ServerPlace(server="s", probe="p", num_gpus=-1)
    place = ServerPlace(server="s", probe="p", num_gpus=1)
    with pytest.raises(ValueError, match="has probe 'p' twice"):
        RackLayout(rack="r", servers=(place, place))
    with pytest.raises(ValueError, match="different names, got 'r0' twice"):
        fleet_of_racks([make_layout(), make_layout()])
    with pytest.raises(ValueError, match="max_age_s must be above 0, got 0"):
        Hub(fleet_of_racks([make_layout()]), max_age_s=0)
