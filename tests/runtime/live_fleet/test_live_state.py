"""The state of a live fleet is the one that a policy was trained on, and says what nobody knows."""

import numpy as np
import pytest
from live_requests import make_dispatcher, make_facts, three_replicas

from trimtab.env.cluster_file import load_cluster
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS
from trimtab.env.kpis import is_met
from trimtab.env.observation import OBSERVED, ObservationLayout, observe
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.fleet_view import fleet_view
from trimtab.env.simulator.layout import FINISHED, SHED
from trimtab.env.simulator.workload import compile_workload
from trimtab.env.state.feature import Node
from trimtab.env.state.registry import column
from trimtab.runtime.dispatcher.replica_page import ReplicaPage
from trimtab.runtime.dispatcher.request import Placement
from trimtab.runtime.live_fleet.live_state import PAGE_NAMES, LiveState
from trimtab.runtime.observer.observer import layout_of
from trimtab.runtime.telemetry.hub import Hub
from trimtab.traces.bundled import load_bundled
from trimtab.traces.superposition import superpose
from trimtab.traces.transform import merge, with_service

# What a GPU's driver alone knows; on a machine without one it is absent.
FROM_DRIVER = {
    (Node.GPU, "sm_activity_frac"),
    (Node.GPU, "power_frac"),
    (Node.SERVER, "power_frac"),
}
LAYOUT = ObservationLayout()
WINDOW_S = 2.0


def make_live_state() -> LiveState:
    cluster = three_replicas()
    return LiveState(Hub(layout_of(cluster)), make_dispatcher(cluster))


def busy_fleet() -> SimulatedFleet:
    """Return a fleet some windows into a busy trace of two classes; the last began at 18 s."""
    bundled = load_bundled("azure-conv")
    trace = merge([with_service(bundled, ttft_slo_s=0.06, priority=k) for k in range(2)])
    offered = superpose(trace, rate_rps=60.0, span_s=30.0, seed=2)
    fleet = SimulatedFleet(load_cluster("demo-16"), compile_workload(offered, name="busy"))
    fleet.reset(seed=0, knobs=ANALYTIC_SCORER_KNOBS)
    for _ in range(10):
        fleet.advance(WINDOW_S)
    return fleet


def live_twin(fleet: SimulatedFleet, window_s: float) -> LiveState:
    """Return the live state of a gateway that has seen what the simulated one did."""
    dispatcher = make_dispatcher(fleet.cluster)
    state = LiveState(Hub(layout_of(fleet.cluster)), dispatcher)
    totals, requests = dispatcher.totals, fleet.requests
    for number in range(11):
        now_s = number * window_s
        window = (requests["arrival_s"] >= now_s - window_s) & (requests["arrival_s"] < now_s)
        for row in requests[window]:
            priority = row["query"]["priority"]
            totals.arrived[priority] += 1
            totals.input_tokens[priority] += row["query"]["input_tokens"]
            totals.ttft_limit_s[priority] += row["query"]["ttft_slo_s"]
            totals.tpot_limit_s[priority] += row["query"]["tpot_slo_s"]
            totals.shed[priority] += row["status"] == SHED
            if row["first_token_s"] <= now_s:
                ttft_s = row["first_token_s"] - row["arrival_s"]
                totals.first_tokens[priority] += 1
                totals.late_first_tokens[priority] += ttft_s > row["query"]["ttft_slo_s"]
        ended = requests[requests["status"] == FINISHED]
        for row in ended[(ended["finish_s"] > now_s - window_s) & (ended["finish_s"] <= now_s)]:
            totals.finished[row["query"]["priority"]] += 1
            totals.late[row["query"]["priority"]] += not is_met(np.array([row]))[0]
        state.end_window(now_s)
    dispatcher.views[:] = fleet_view(fleet.arrays)
    state.seen[:] = True
    return state


def test_a_policy_observes_the_same_of_a_live_fleet_as_of_a_simulated_one() -> None:
    fleet = busy_fleet()
    simulated = fleet.state()
    live = live_twin(fleet, WINDOW_S).read(20.0)
    action = np.linspace(-1.0, 1.0, LAYOUT.action_size, dtype=np.float32)
    expected = observe(simulated, action, LAYOUT)
    # What only a driver knows is compared apart: nobody put it into the live hub.
    for node, name in FROM_DRIVER:
        place = [feature.name for feature in OBSERVED[node]].index(name)
        size = LAYOUT.sizes()[node]
        expected[str(node)].reshape(size, -1)[:, place] = 0.0
    observed = observe(live, action, LAYOUT)
    assert expected.keys() == observed.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(observed[key], values, atol=1e-5, err_msg=key)
    # It was worth comparing: requests came, and some were late.
    assert simulated.feature(Node.TENANT, "late_frac")[0] > 0.0
    assert simulated.feature(Node.TENANT, "missed_frac")[0] > 0.0
    assert simulated.feature(Node.FLEET, "load_frac")[0] > 0.0


def test_every_observed_feature_is_there_but_for_what_a_driver_knows() -> None:
    state = live_twin(busy_fleet(), WINDOW_S).read(20.0)
    for node, features in OBSERVED.items():
        for feature in features:
            is_valid = state.is_valid[node][:, column(node, feature.name)]
            expected = (node, feature.name) not in FROM_DRIVER
            assert is_valid.all() == expected, (node, feature.name)


def test_the_same_holds_hours_later() -> None:
    live = make_live_state()
    for at_s in (0.0, 2.0):
        live.end_window(1e6 + at_s)
    state = live.read(1e6 + 3600.0)
    peak = state.feature(Node.GPU, "peak_bf16_flops")
    assert np.isfinite(peak).all()
    for node in (Node.GPU, Node.SERVER):
        is_known = state.is_valid[node].any(axis=0)
        assert is_known.any()
    assert np.isfinite(state.feature(Node.SERVER, "network_bytes_per_s")).all()


def test_reading_a_state_does_not_change_what_the_hub_has() -> None:
    live = make_live_state()
    before = live.hub.state(5.0)
    live.read(5.0)
    after = live.hub.state(5.0)
    for node in Node:
        np.testing.assert_array_equal(before.values[node], after.values[node])
        np.testing.assert_array_equal(before.is_valid[node], after.is_valid[node])


def test_what_no_page_has_said_is_absent_and_not_zero() -> None:
    live = make_live_state()
    live.seen[1, PAGE_NAMES.index("running_requests")] = True
    live.dispatcher.put_page(1, ReplicaPage(running_requests=3.0), 4.5)
    state = live.read(5.0)
    running = state.feature(Node.REPLICA, "running_requests")
    assert running[1] == 3.0
    assert np.isnan(running[[0, 2]]).all()
    assert np.isnan(state.feature(Node.REPLICA, "kv_usage_frac")).all()
    assert state.feature(Node.REPLICA, "is_available").tolist() == [1.0, 1.0, 1.0]
    assert state.feature(Node.REPLICA, "state_age_s")[1] == pytest.approx(0.5)
    assert state.age_s[Node.REPLICA][1] == pytest.approx(0.5)


def test_before_the_first_window_nothing_is_known_of_traffic() -> None:
    live = make_live_state()
    live.end_window(0.0)
    state = live.read(1.0)
    assert np.isnan(state.feature(Node.FLEET, "load_frac")).all()
    assert np.isnan(state.feature(Node.TENANT, "arrival_rate_rps")).all()


def test_a_window_counts_what_arrived_in_it() -> None:
    live = make_live_state()
    live.end_window(100.0)
    for number in range(6):
        facts = make_facts(number, 100.5, ttft_slo_s=0.2, priority=number % 2)
        chosen = live.dispatcher.dispatch(facts, 100.5)
        assert isinstance(chosen, Placement)
        live.dispatcher.first_token(chosen, 100.6 if number < 4 else 101.0)
    live.end_window(102.0)
    state = live.read(102.0)
    assert state.feature(Node.TENANT, "arrival_rate_rps").tolist() == [1.5, 1.5]
    assert state.feature(Node.TENANT, "mean_input_tokens").tolist() == [302.0, 303.0]
    assert state.feature(Node.TENANT, "late_frac") == pytest.approx([1 / 3, 1 / 3])
    assert state.feature(Node.FLEET, "arrival_log_change").tolist() == [0.0]
    # The first token of a request of an earlier window is not counted in this one.
    late = live.dispatcher.dispatch(make_facts(9, 101.9), 101.9)
    assert isinstance(late, Placement)
    live.dispatcher.first_token(late, 103.0)
    live.end_window(104.0)
    state = live.read(104.0)
    assert state.feature(Node.TENANT, "late_frac").tolist() == [0.0, 0.0]
    # The request that came after the window's end belongs to the next one.
    change = np.log((0.5 + 1.0) / (3.0 + 1.0))
    assert state.feature(Node.FLEET, "arrival_log_change") == pytest.approx([change])
