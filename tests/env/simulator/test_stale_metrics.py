"""The gateway's own counts are of now; what engines report is as old as the last scrape."""

import numpy as np
import pytest

from trimtab.env.knobs import Knobs
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.faults import FaultConfig
from trimtab.env.simulator.setup import FleetConfig
from trimtab.env.state.feature import Node

SCRAPED = (
    "scraped_at_s",
    "running_requests",
    "waiting_requests",
    "kv_usage_frac",
    "cached_frac",
    "iteration_log_ratio",
    "prefill_frac",
    "prefill_stretch",
    "decode_base_s",
)
OWN = ("outstanding_requests", "outstanding_tokens", "pending_tokens", "progress_at_s")


@pytest.fixture
def make_busy_fleet(make_cluster, make_random_workload):
    def make(**config) -> SimulatedFleet:
        workload = make_random_workload(2000, rate_rps=60.0, seed=1)
        cluster = make_cluster(("H100-80G", "A100-80G"), kv_pages=2000, max_num_seqs=24)
        fleet = SimulatedFleet(cluster, workload, FleetConfig(**config))
        fleet.reset(seed=0, knobs=Knobs.of(outstanding_requests_weight=1.0))
        return fleet

    return make


def test_scraped_fields_stand_still_between_scrapes(make_busy_fleet):
    faults = FaultConfig(replica_slowdowns_per_hour=400.0)
    fleet = make_busy_fleet(scrape_interval_s=0.5, scrape_drop_frac=0.0, faults=faults)
    fresh = fleet.arrays.views.copy()
    fleet.advance(5.01)
    views = [fleet.arrays.views.copy()]
    for _ in range(8):
        fleet.advance(0.05)
        views.append(fleet.arrays.views.copy())
    for name in SCRAPED:
        values = np.array([view[name] for view in views])
        assert (values == values[0]).all(), name
        assert (values[0] != fresh[name]).any(), name
    for name in OWN:
        values = np.array([view[name] for view in views])
        assert (np.diff(values, axis=0) != 0).sum() > 4, name


def test_scrape_reads_the_engine_of_that_moment(make_busy_fleet):
    fleet = make_busy_fleet(scrape_interval_s=0.5, scrape_drop_frac=0.0)
    fleet.advance(7.0)  # the scrape at 7 s is an event of the next window
    fleet.advance(1e-9)
    views, replicas = fleet.arrays.views, fleet.arrays.replicas
    assert (views["scraped_at_s"] == 7.0).all()
    running = replicas["num_prefilling"] + replicas["num_decoding"]
    np.testing.assert_array_equal(views["running_requests"], running)
    np.testing.assert_array_equal(views["waiting_requests"], replicas["num_waiting"])
    pages = replicas["free_pages"] + 4 * replicas["num_evictable_blocks"]
    np.testing.assert_allclose(views["kv_usage_frac"], 1.0 - pages / replicas["total_pages"])
    cached = 4 * replicas["num_cached_blocks"] / replicas["total_pages"]
    np.testing.assert_allclose(views["cached_frac"], cached)
    assert running.min() > 0
    assert cached.min() > 0.0


def test_age_of_the_state_is_time_since_the_scrape(make_busy_fleet):
    fleet = make_busy_fleet(scrape_interval_s=0.5, scrape_drop_frac=0.0)
    fleet.advance(3.25)
    state = fleet.state()
    np.testing.assert_allclose(state.feature(Node.REPLICA, "state_age_s"), 0.25)
    np.testing.assert_array_equal(
        state.age_s[Node.REPLICA], state.feature(Node.REPLICA, "state_age_s")
    )


@pytest.mark.parametrize("drop_frac", [0.0, 0.5, 0.9])
def test_lost_scrapes_leave_older_states(make_busy_fleet, drop_frac):
    fleet = make_busy_fleet(scrape_interval_s=0.1, scrape_drop_frac=drop_frac)
    ages = []
    for _ in range(250):
        fleet.advance(0.1)
        ages.append(fleet.state().age_s[Node.REPLICA])
    # Just before a scrape, one of age 0.1 s; each lost one in a row adds an interval.
    mean_age_s = np.mean(ages[50:])
    assert mean_age_s == pytest.approx(0.1 / (1.0 - drop_frac), rel=0.25)
    assert (np.max(ages) > 0.15) == (drop_frac > 0)


def test_knobs_take_effect_on_running_work_at_once(make_cluster, make_workload):
    """A larger token budget ends a prefill sooner; the gateway notes its token when it comes."""
    workload = make_workload([0.0, 0.5], [12_000, 100], [50, 10])
    config = FleetConfig(scrape_interval_s=100.0)
    fleet = SimulatedFleet(make_cluster(max_batch_tokens=512), workload, config)
    fleet.reset(seed=0, knobs=Knobs.of(batch_tokens_scale=0.125))
    fleet.advance(0.05)
    fleet.apply(Knobs.of(batch_tokens_scale=4.0, elapsed=0.01))
    # Nothing else calls at the replica until the second request comes.
    seen = fleet.branch()
    seen.advance(0.6)
    first, second = seen.requests
    assert first["first_token_s"] < 0.5
    # Had the gateway not noted it, the second's prediction would count the first as backlog.
    assert second["predicted_ttft_s"] < 0.1
