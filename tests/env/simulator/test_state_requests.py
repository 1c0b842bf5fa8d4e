"""What requests say in the state, by hand: percentiles, histograms, spreads, shares, what waits."""

import numpy as np
import pytest

from trimtab.env.knobs import Knobs
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.readers.distributions import grouped, mean_of, percentile, variation
from trimtab.env.state.edges import Edge
from trimtab.env.state.feature import Node

ROUND_ROBIN = Knobs.of(round_robin_weight=1.0)


@pytest.fixture
def fleet(make_cluster, make_random_workload) -> SimulatedFleet:
    """Two replicas, four windows in, with late and early requests of both tenants."""
    workload = make_random_workload(400, rate_rps=30.0, seed=5)
    workload.requests["query"]["ttft_slo_s"] = np.where(np.arange(400) % 3, 10.0, 1e-4)
    fleet = SimulatedFleet(make_cluster(["H100-80G", "L40S-48G"]), workload)
    fleet.reset(seed=0, knobs=ROUND_ROBIN)
    for _ in range(4):
        fleet.advance(2.0)
    return fleet


def in_window(fleet: SimulatedFleet, moment: str) -> np.ndarray:
    """Requests of which something happened in the last window, from 6 to 8 s."""
    requests = fleet.requests
    return requests[(requests[moment] > 6.0) & (requests[moment] <= 8.0)]


def tenant_of(requests: np.ndarray) -> np.ndarray:
    return requests["query"]["priority"]


def test_ttft_of_tenants_and_replicas(fleet):
    state, requests = fleet.state(), in_window(fleet, "first_token_s")
    ttft_s = requests["first_token_s"] - requests["arrival_s"]
    is_late = ttft_s > requests["query"]["ttft_slo_s"]
    assert requests.size > 30
    for node, groups in ((Node.TENANT, tenant_of(requests)), (Node.REPLICA, requests["replica"])):
        for group in (0, 1):
            own_s = ttft_s[groups == group]
            for name, percent in (("ttft_p50_s", 50), ("ttft_p99_s", 99)):
                expected = np.percentile(own_s, percent)
                assert state.feature(node, name)[group] == pytest.approx(expected, rel=1e-12)
    for r in (0, 1):
        late = is_late[requests["replica"] == r]
        assert 0 < state.feature(Node.REPLICA, "late_frac")[r] == late.mean() < 1
    assert state.feature(Node.FLEET, "late_frac")[0] == is_late.mean()


def test_what_ended_in_the_window(fleet):
    state, requests = fleet.state(), in_window(fleet, "finish_s")
    later = requests["output_tokens"] - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        tpot_s = (requests["finish_s"] - requests["first_token_s"]) / later
    hold_s = requests["finish_s"] - requests["arrival_s"]
    for node, groups in ((Node.TENANT, tenant_of(requests)), (Node.REPLICA, requests["replica"])):
        for group in (0, 1):
            own = groups == group
            several = own & (later > 0)
            expected = {
                "tpot_mean_s": tpot_s[several].mean(),
                "tpot_p99_s": np.percentile(tpot_s[several], 99),
                "hold_s": hold_s[own].mean(),
            }
            for name, value in expected.items():
                assert state.feature(node, name)[group] == pytest.approx(value, rel=1e-12), name
    for k in (0, 1):
        outputs = requests["output_tokens"][tenant_of(requests) == k]
        for name, percent in (("output_p10_tokens", 10), ("output_p90_tokens", 90)):
            assert state.feature(Node.TENANT, name)[k] == pytest.approx(
                np.percentile(outputs, percent)
            )


def test_arrivals_by_length_and_gap(make_cluster, make_workload):
    """Gaps of 0.1, 0.1 and 0.4 s: mean 0.2, spread sqrt(0.02), most 0.4."""
    workload = make_workload(
        [0.1, 0.2, 0.3, 0.7, 0.8],
        [128, 129, 2048, 9000, 50],
        [2] * 5,
        priority=[0, 0, 0, 0, 1],
    )
    fleet = SimulatedFleet(make_cluster(), workload)
    fleet.reset(seed=0)
    fleet.advance(1.0)
    state = fleet.state()

    def tenants(name: str) -> list[float]:
        return [float(x) for x in state.feature(Node.TENANT, name)]

    assert tenants("interarrival_cv") == pytest.approx([0.5**0.5, np.nan], nan_ok=True)
    assert tenants("interarrival_p99_s") == pytest.approx([0.394, np.nan], nan_ok=True)
    bins = ("input_le_128_frac", "input_le_512_frac", "input_le_2048_frac", "input_le_8192_frac")
    histogram = np.array([tenants(name) for name in (*bins, "input_longer_frac")]).T
    np.testing.assert_array_equal(histogram, [[0.25, 0.25, 0.25, 0, 0.25], [1, 0, 0, 0, 0]])
    fleet.advance(1.0)
    assert not fleet.state().is_valid[Node.TENANT][:, 5:10].all()
    for name in (*bins, "interarrival_cv", "priority_weight"):
        assert np.isnan(fleet.state().feature(Node.TENANT, name)).all(), name


def test_who_waits_where_and_who_is_at_risk(make_cluster, make_workload):
    """Replica 0 is taken up by a long prompt; two more wait there, one beyond half its limit."""
    workload = make_workload(
        [0.0, 0.10, 0.10, 0.40],
        [30_000, 10, 100, 100],
        [5, 2, 5, 5],
        priority=[0, 0, 1, 1],
        ttft_slo_s=[60.0, 1.0, 0.5, 0.5],
    )
    fleet = SimulatedFleet(make_cluster(), workload)
    fleet.reset(seed=0)
    fleet.advance(0.5)
    state, requests = fleet.state(), fleet.requests
    waits = ~np.isfinite(requests["first_token_s"])
    assert waits.all()
    values = state.edges[Edge.WAITS_ON].values
    np.testing.assert_array_equal(values, [[2, 2], [2, 2]])
    np.testing.assert_array_equal(state.feature(Node.TENANT, "waiting_requests"), [2, 2])
    np.testing.assert_array_equal(state.feature(Node.TENANT, "sla_risk_frac"), [0.0, 0.5])
    assert state.feature(Node.REPLICA, "sla_risk_frac")[0] == 0.25
    fleet.drain()
    assert np.isnan(fleet.state().feature(Node.REPLICA, "sla_risk_frac")[0])
    assert fleet.state().feature(Node.FLEET, "outstanding_requests")[0] == 0.0


def test_distributions_are_those_of_numpy():
    rng = np.random.default_rng(0)
    groups, values = rng.integers(4, size=200), rng.exponential(size=200)
    groups[groups == 2] = 1
    values[::17] = np.nan
    ordered, starts = grouped(groups, values, 4)
    counts = np.bincount(groups[np.isfinite(values)], minlength=4)
    assert starts.tolist() == [0, *np.cumsum(counts)]
    for group in range(4):
        own, known = ordered[starts[group] : starts[group + 1]], values[groups == group]
        known = known[np.isfinite(known)]
        if known.size == 0:
            assert np.isnan([percentile(own, 0.5), mean_of(own), variation(own)]).all()
            continue
        for frac in (0.0, 0.1, 0.5, 0.99, 1.0):
            assert percentile(own, frac) == pytest.approx(np.percentile(known, 100 * frac))
        assert mean_of(own) == pytest.approx(known.mean())
        assert variation(own) == pytest.approx(known.std() / known.mean())
