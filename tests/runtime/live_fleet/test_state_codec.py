"""A state comes out of its bytes as it went in; bytes that are none are refused with a reason."""

import msgspec
import numpy as np
import pytest
from live_requests import make_dispatcher, three_replicas

from trimtab.env.cluster_file import load_cluster
from trimtab.env.observation import ObservationLayout, observe
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.workload import compile_workload
from trimtab.env.state.cluster_state import ClusterState
from trimtab.env.state.edges import Edge
from trimtab.env.state.feature import Node
from trimtab.runtime.live_fleet.live_state import LiveState
from trimtab.runtime.live_fleet.state_codec import StateError, decode_state, encode_state
from trimtab.runtime.observer.observer import layout_of
from trimtab.runtime.telemetry.hub import Hub
from trimtab.traces.bundled import load_bundled


def simulated_state() -> ClusterState:
    trace = load_bundled("azure-conv")
    fleet = SimulatedFleet(load_cluster("demo-16"), compile_workload(trace, name="plain"))
    fleet.reset(seed=0)
    fleet.advance(4.0)
    return fleet.state()


def live_state() -> ClusterState:
    cluster = three_replicas()
    return LiveState(Hub(layout_of(cluster)), make_dispatcher(cluster)).read(5.0)


def fields_of(state: ClusterState) -> dict[str, object]:
    return dict(msgspec.msgpack.decode(encode_state(state)))


@pytest.mark.parametrize("make", [simulated_state, live_state])
def test_a_state_comes_out_as_it_went_in(make: object) -> None:
    state = make()  # type: ignore[operator]
    found = decode_state(encode_state(state))
    assert found.now_s == state.now_s
    for node in Node:
        known = state.is_valid[node]
        np.testing.assert_array_equal(found.is_valid[node], known)
        np.testing.assert_array_equal(found.values[node][known], state.values[node][known])
        assert np.isnan(found.values[node][~known]).all()
        np.testing.assert_array_equal(found.age_s[node], state.age_s[node])
    np.testing.assert_array_equal(found.gpu_replica, state.gpu_replica)
    np.testing.assert_array_equal(found.gpu_server, state.gpu_server)
    # A policy in another process observes the same.
    action, layout = np.zeros(ObservationLayout().action_size, np.float32), ObservationLayout()
    expected, observed = observe(state, action, layout), observe(found, action, layout)
    for key, values in expected.items():
        np.testing.assert_array_equal(observed[key], values, err_msg=key)


def test_which_gpus_serve_which_replicas_goes_along() -> None:
    state = simulated_state()
    found = decode_state(encode_state(state))
    assert list(found.edges) == [Edge.HOSTS]
    np.testing.assert_array_equal(found.edges[Edge.HOSTS].target, state.edges[Edge.HOSTS].target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"registry_hash": "0" * 8}, "of feature registry 00000000, but this Trimtab has"),
        ({"values": {}}, "replica values must be whole numbers of 8 bytes, .* got none"),
        ({"gpu_replica": b"1234567"}, "gpu_replica must be .* got 7 bytes"),
        ({"age_s": {}}, "replica ages must be whole numbers of 8 bytes, .* got none"),
        ({"hosts": [b"\xff" * 8, b"\0" * 8]}, "hosts must be among 16 gpu nodes, got -1 to -1"),
        ({"hosts": [b"\0" * 16, b"\0" * 8]}, "as many GPUs as replicas, got 2 and 1"),
        ({"gpu_server": b"\x09" + b"\0" * 7}, "gpu_server must be among 4 server nodes, got 9"),
        ({"now_s": "noon"}, "Expected `float`"),
        ({"more": 1}, "unknown field `more`"),
    ],
)  # fmt: skip
def test_bytes_that_contradict_themselves_are_refused(
    change: dict[str, object], message: str
) -> None:
    data = msgspec.msgpack.encode(fields_of(simulated_state()) | change)
    with pytest.raises(StateError, match=message):
        decode_state(data)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"no state", encode_state(live_state())[:-1]])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(StateError, match="no state"):
        decode_state(data)
