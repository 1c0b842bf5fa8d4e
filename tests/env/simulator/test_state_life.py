"""What a state shows of a replica's life, of its age, and of the health of links."""

import numpy as np
import pytest

from trimtab.env.knobs import Knobs
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.setup import FleetConfig
from trimtab.env.state.feature import Node
from trimtab.env.state.graph import graph_of


@pytest.fixture
def fleet(make_cluster, make_random_workload) -> SimulatedFleet:
    """Three replicas on one server, scraped every half second, none lost."""
    cluster = make_cluster(["H100-80G"] * 3, engine_init_s=2.0)
    config = FleetConfig(scrape_interval_s=0.5, scrape_drop_frac=0.0)
    workload = make_random_workload(400, rate_rps=10.0, seed=6)
    fleet = SimulatedFleet(cluster, workload, config)
    fleet.reset(seed=0, knobs=Knobs.of(outstanding_requests_weight=1.0))
    return fleet


def of_replicas(fleet: SimulatedFleet, name: str) -> list[float]:
    return [float(x) for x in fleet.state().feature(Node.REPLICA, name)]


def test_ages_are_those_of_scrapes_and_windows(fleet):
    fleet.advance(2.2)
    state = fleet.state()
    assert state.age_s[Node.REPLICA] == pytest.approx([0.2] * 3)
    assert state.feature(Node.REPLICA, "state_age_s") == pytest.approx([0.2] * 3)
    assert not state.age_s[Node.GPU].any()
    fleet.run_until(2.4)
    state = fleet.state()
    assert state.age_s[Node.REPLICA] == pytest.approx([0.4] * 3)
    assert state.age_s[Node.GPU] == pytest.approx([0.2] * 3)
    assert state.age_s[Node.SERVER] == pytest.approx([0.2])
    assert state.age_s[Node.TENANT].tolist() == [0.0, 0.0]


def test_off_starting_and_back(fleet):
    fleet.advance(1.0)
    fleet.stop(2)
    fleet.advance(30.0)
    assert of_replicas(fleet, "is_off") == [0, 0, 1]
    assert of_replicas(fleet, "is_available") == [1, 1, 0]
    for name in ("running_requests", "kv_usage_frac", "kv_contiguity_frac", "output_tokens_per_s"):
        assert np.isnan(of_replicas(fleet, name)).tolist() == [False, False, True], name
    gpus = fleet.state().feature(Node.GPU, "weights_frac")
    assert gpus[2] == 0.0 < gpus[0]
    fleet.start(2)
    fleet.advance(1.0)
    assert of_replicas(fleet, "is_starting") == [0, 0, 1]
    # 16 GB from a disk of 1.7 GB/s: it reads at full speed for more than nine seconds.
    load_s = 8_030_261_248 * 2 / 1.7e9
    assert of_replicas(fleet, "weight_load_s") == pytest.approx([load_s] * 3)
    assert fleet.state().feature(Node.SERVER, "disk_read_frac")[0] == pytest.approx(1.0)
    assert np.isnan(fleet.state().feature(Node.GPU, "hbm_used_frac")[2])
    fleet.advance(load_s + 2.0)
    assert of_replicas(fleet, "is_available") == [1, 1, 1]
    assert fleet.state().feature(Node.SERVER, "disk_read_frac")[0] == 0.0
    assert np.isfinite(of_replicas(fleet, "running_requests")).all()


def test_driver_shows_slow_links_and_nobody_a_slow_network(fleet):
    fleet.degrade_link("s0/gpu-1/nvlink-in", 0.25)
    fleet.degrade_link("s0/gpu-2/pcie-out", 0.5)
    fleet.degrade_link("s0/uplink", 0.1)
    fleet.advance(1.0)
    names = [link.name for link in graph_of(fleet.cluster).links]
    health = dict(zip(names, fleet.state().feature(Node.LINK, "health_frac"), strict=True))
    assert np.isnan(health.pop("s0/network"))
    assert health == {
        "s0/nvlink": 0.25,
        "s0/gpu-0/pcie": 1.0,
        "s0/gpu-1/pcie": 1.0,
        "s0/gpu-2/pcie": 0.5,
    }


def test_a_window_counts_from_where_it_begins(fleet):
    """What ran between two windows belongs to neither."""
    fleet.advance(1.0)
    fleet.run_until(5.0)
    before = fleet.arrays.replicas["generated_tokens"].copy()
    fleet.advance(1.0)
    made = fleet.arrays.replicas["generated_tokens"] - before
    assert of_replicas(fleet, "output_tokens_per_s") == made.tolist()
    requests = fleet.requests
    arrived = requests[(requests["arrival_s"] > 5.0) & (requests["arrival_s"] <= 6.0)]
    rates = fleet.state().feature(Node.TENANT, "arrival_rate_rps")
    assert rates.sum() == arrived.size > 0
