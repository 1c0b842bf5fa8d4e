"""Several gateways: each knows its own requests at once, and the others' only by the scrapes."""

import numpy as np
import pytest

from trimtab.env.knobs import Knobs
from trimtab.env.simulated_fleet import SimulatedFleet, run_workload
from trimtab.env.simulator.faults import FaultConfig
from trimtab.env.simulator.fleet_view import fleet_view
from trimtab.env.simulator.setup import INITIAL_OUTPUT_TOKENS, FleetConfig
from trimtab.env.state.feature import Node

LEAST_REQUESTS = Knobs.of(outstanding_requests_weight=1.0)
TROUBLE = FaultConfig(
    replica_slowdowns_per_hour=200.0, crashes_per_hour=120.0, restart_span_s=(0.5, 3.0)
)


@pytest.fixture
def make_fleet(make_cluster, make_random_workload):
    def make(num_gateways: int, knobs: Knobs = LEAST_REQUESTS, **config) -> SimulatedFleet:
        workload = make_random_workload(600, rate_rps=60.0, seed=1)
        cluster = make_cluster(("H100-80G",) * 4)
        fleet = SimulatedFleet(cluster, workload, FleetConfig(num_gateways=num_gateways, **config))
        fleet.reset(seed=0, knobs=knobs)
        return fleet

    return make


def test_two_gateways_both_send_their_first_requests_to_replica_0(make_cluster, make_workload):
    """Each fills 0, 1, 2, ... by its own counts, so k requests of each go to k replicas, twice."""
    workload = make_workload(np.arange(8) * 1e-4, [100] * 8, [500] * 8, session=list(range(8)))
    config = FleetConfig(num_gateways=2, scrape_interval_s=10.0)
    fleet = SimulatedFleet(make_cluster(("H100-80G",) * 8), workload, config)
    fleet.reset(seed=0, knobs=LEAST_REQUESTS)
    fleet.advance(0.01)
    requests = fleet.requests
    for gateway in (0, 1):
        own = requests["replica"][requests["gateway"] == gateway]
        assert own.size >= 2
        assert own.tolist() == list(range(own.size))
    # One gateway alone sends every request to another replica.
    alone = SimulatedFleet(make_cluster(("H100-80G",) * 8), workload)
    alone.reset(seed=0, knobs=LEAST_REQUESTS)
    alone.advance(0.01)
    assert alone.requests["replica"].tolist() == list(range(8))


def test_a_session_stays_with_its_gateway_and_sessions_spread(make_fleet):
    fleet = make_fleet(4)
    fleet.drain()
    sessions, gateways = fleet.requests["query"]["session_hash"], fleet.requests["gateway"]
    for session in np.unique(sessions):
        assert np.unique(gateways[sessions == session]).size == 1
    assert np.bincount(gateways, minlength=4).min() > 0.15 * gateways.size


def test_own_counts_are_of_own_requests_and_add_up(make_fleet):
    fleet = make_fleet(3, faults=TROUBLE)
    for _ in range(40):
        fleet.advance(0.2)
        views = fleet.arrays.views.reshape(3, -1)
        requests, num_replicas = fleet.requests, views.shape[1]
        is_open = np.isnan(requests["finish_s"])
        for g in range(3):
            held = requests["replica"][is_open & (requests["gateway"] == g)]
            own = np.bincount(held, minlength=num_replicas)
            np.testing.assert_array_equal(views[g]["outstanding_requests"], own)
        state = fleet.state()
        merged = fleet_view(fleet.arrays)
        total = np.bincount(requests["replica"][is_open], minlength=num_replicas)
        np.testing.assert_array_equal(merged["outstanding_requests"], total)
        outstanding = state.feature(Node.REPLICA, "outstanding_requests")
        np.testing.assert_array_equal(outstanding, total)


def test_scrapes_are_staggered(make_fleet):
    fleet = make_fleet(4, scrape_interval_s=0.4, scrape_drop_frac=0.0)
    fleet.advance(2.05)
    scraped_at_s = fleet.arrays.views.reshape(4, -1)["scraped_at_s"]
    np.testing.assert_allclose(scraped_at_s.T, [[1.7, 1.8, 1.9, 2.0]] * 4)
    assert fleet.state().age_s[Node.REPLICA] == pytest.approx(0.05)


def test_each_gateway_reads_the_whole_slow_down(make_cluster, make_workload):
    """One that reads a page does not take away what the next one will find there."""
    workload = make_workload(np.arange(40) * 0.1, [200] * 40, [100] * 40)
    faults = FaultConfig(
        replica_slowdowns_per_hour=3600.0, slowdown_factor=(2.0, 2.0), slowdown_span_s=(1e4, 1e4)
    )
    config = FleetConfig(num_gateways=3, scrape_drop_frac=0.0, faults=faults)
    fleet = SimulatedFleet(make_cluster(), workload, config)
    fleet.reset(seed=1, knobs=LEAST_REQUESTS)
    fleet.advance(4.0)
    ratios = fleet.arrays.views["iteration_log_ratio"]
    assert ratios.min() > 0.6
    np.testing.assert_allclose(ratios, ratios[0], rtol=0.3)


def test_output_lengths_are_learned_apart(make_fleet):
    fleet = make_fleet(2)
    fleet.drain()
    expected = fleet.arrays.gateways["expected_output_tokens"]
    assert (expected != INITIAL_OUTPUT_TOKENS).all()
    assert (expected[0] != expected[1]).all()


def test_the_same_seed_gives_the_same_run_and_a_branch_goes_on_alike(make_fleet):
    knobs = Knobs.of(scorer_weight=1.0, shed_enabled=1.0)
    one, other = (make_fleet(3, knobs, faults=TROUBLE, num_candidates=2) for _ in range(2))
    one.advance(2.0)
    branch = one.branch()
    for fleet in (one, branch, other):
        fleet.drain()
    for fleet in (branch, other):
        np.testing.assert_array_equal(fleet.requests["replica"], one.requests["replica"])
    np.testing.assert_array_equal(branch.requests["finish_s"], one.requests["finish_s"])


def test_jumps_equal_single_steps_behind_several_gateways(make_cluster, make_random_workload):
    workload = make_random_workload(300, rate_rps=40.0, seed=6, num_prompts=0)
    cluster = make_cluster(("H100-80G", "A100-80G", "L40S-48G"))
    runs = [
        run_workload(
            cluster,
            workload,
            Knobs.of(scorer_weight=1.0),
            config=FleetConfig(num_gateways=2, faults=TROUBLE, is_single_step=is_single_step),
        ).requests
        for is_single_step in (False, True)
    ]
    np.testing.assert_array_equal(runs[0]["replica"], runs[1]["replica"])
    np.testing.assert_allclose(runs[0]["finish_s"], runs[1]["finish_s"], rtol=0, atol=1e-9)


def test_gateways_that_do_not_see_each_other_spread_worse(make_fleet):
    """The point of simulating them: by own counts alone, eight collide where one does not."""
    spreads = []
    for num_gateways in (1, 8):
        fleet, spread = make_fleet(num_gateways), []
        while fleet.now_s < 8.0:
            fleet.advance(0.1)
            is_open = np.isnan(fleet.requests["finish_s"])
            spread.append(np.ptp(np.bincount(fleet.requests["replica"][is_open], minlength=4)))
        spreads.append(np.mean(spread))
    assert spreads[1] > 1.5 * spreads[0]


def test_errors_name_the_setting():
    with pytest.raises(ValueError, match="num_gateways must be at least 1, got 0"):
        FleetConfig(num_gateways=0)
