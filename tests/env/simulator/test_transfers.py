"""Bytes on shared links: hand-computed times, and what max-min fairness means for any of them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.env.cluster import ClusterSpec, InitialState
from trimtab.env.knobs import Knobs
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator import transfers
from trimtab.env.simulator.layout import KV_TRANSFER, SimulationArrays
from trimtab.env.simulator.memory import handle
from trimtab.env.simulator.setup import FleetConfig, allocate
from trimtab.env.topology import links, path

NETWORK = 0.87 * 25e9


def make_links(make_cluster, make_workload, num_per_server: int = 2) -> SimulationArrays:
    """Arrays of a fleet on three servers; transfers are put on its links by hand."""
    cluster = make_cluster(
        [gpu for gpu in ("H100-80G", "A100-80G", "L40S-48G") for _ in range(num_per_server)]
    )
    arrays = allocate(
        cluster,
        make_workload([0.0], [1], [1]),
        FleetConfig(),
        knobs=Knobs(),
        seed=0,
        horizon_s=1.0,
    )
    return arrays._replace(transfers=np.zeros(64, dtype=arrays.transfers.dtype))


def begin(arrays: SimulationArrays, pair: tuple[int, int], size_bytes: float, now_s: float) -> None:
    """Add a transfer that flows at once."""
    sim = handle(arrays)[0]
    transfers.add_between(sim, KV_TRANSFER, 0, *pair)
    row = arrays.transfers[int(arrays.fleet[0]["num_transfers"]) - 1]
    transfers.start(sim, row, size_bytes, now_s)
    transfers.begin(row, now_s)
    transfers.refresh_rates(sim, now_s)


def end_first(arrays: SimulationArrays) -> float:
    """Let the transfer that ends first end; return when it does."""
    rows = arrays.transfers[: int(arrays.fleet[0]["num_transfers"])]
    first = int(np.argmin(rows["ends_at_s"]))
    at_s = float(rows["ends_at_s"][first])
    sim = handle(arrays)[0]
    transfers.remove(sim, first)
    transfers.refresh_rates(sim, at_s)
    return at_s


def test_two_on_a_link_get_half_each_until_one_ends(make_cluster, make_workload):
    arrays = make_links(make_cluster, make_workload)
    begin(arrays, (0, 2), NETWORK * 1.0, 0.0)
    begin(arrays, (1, 3), NETWORK * 2.0, 0.0)
    np.testing.assert_allclose(arrays.transfers["bytes_per_s"][:2], NETWORK / 2)
    # At half the rate until the first has its 1 s of bytes; the other has 1 s left then.
    assert end_first(arrays) == pytest.approx(2.0)
    assert arrays.transfers["bytes_per_s"][0] == pytest.approx(NETWORK)
    assert end_first(arrays) == pytest.approx(3.0)


def test_one_that_comes_later_slows_the_other_down(make_cluster, make_workload):
    arrays = make_links(make_cluster, make_workload)
    begin(arrays, (0, 2), NETWORK * 3.0, 0.0)
    begin(arrays, (0, 4), NETWORK * 0.5, 1.0)
    assert end_first(arrays) == pytest.approx(2.0)
    # 1 s alone, 1 s at half: 1.5 of 3 moved by then.
    assert end_first(arrays) == pytest.approx(3.5)


def test_a_slow_link_leaves_the_rest_of_a_shared_one_to_others(make_cluster, make_workload):
    """Max-min: what the degraded downlink keeps one from using, the other gets."""
    arrays = make_links(make_cluster, make_workload)
    names = list(links(make_cluster(["H100-80G"] * 2 + ["A100-80G"] * 2 + ["L40S-48G"] * 2)))
    begin(arrays, (0, 2), NETWORK, 0.0)
    begin(arrays, (1, 4), NETWORK, 0.0)
    transfers.set_link(handle(arrays)[0], names.index("s1/downlink"), 0.25, 0.4)
    np.testing.assert_allclose(arrays.transfers["bytes_per_s"][:2], [NETWORK / 4, NETWORK * 3 / 4])
    # By 0.4 s each has moved 0.2; then 0.8 at 3/4 and at 1/4 of the rate.
    assert end_first(arrays) == pytest.approx(0.4 + 0.8 / 0.75)
    left = 0.8 - 0.25 * 0.8 / 0.75
    assert end_first(arrays) == pytest.approx(0.4 + 0.8 / 0.75 + left / 0.25)


def test_a_dead_link_stops_a_transfer_until_it_is_back(make_cluster, make_workload):
    arrays = make_links(make_cluster, make_workload)
    names = list(links(make_cluster(["H100-80G"] * 2 + ["A100-80G"] * 2 + ["L40S-48G"] * 2)))
    begin(arrays, (0, 2), NETWORK, 0.0)
    transfers.set_link(handle(arrays)[0], names.index("s0/uplink"), 0.0, 0.5)
    assert arrays.transfers["ends_at_s"][0] == np.inf
    transfers.set_link(handle(arrays)[0], names.index("s0/uplink"), 1.0, 7.0)
    assert end_first(arrays) == pytest.approx(7.5)


@settings(max_examples=80, derandomize=True, database=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=20),
    degraded=st.lists(st.tuples(st.integers(0, 40), st.floats(0.05, 1.0)), max_size=5),
)
def test_rates_are_max_min_fair(make_cluster, make_workload, pairs, degraded):
    """No link carries more than it can, and each transfer has a full link where none is faster."""
    arrays = make_links(make_cluster, make_workload, num_per_server=3)
    sim = handle(arrays)[0]
    for link, factor in degraded:
        transfers.set_link(sim, link % arrays.links.size, factor, 0.0)
    pairs = [(a, b) for a, b in pairs if a != b]
    for pair in pairs:
        begin(arrays, pair, 1e9, 0.0)
    rows = arrays.transfers[: len(pairs)]
    capacity = arrays.links["bytes_per_s"] * arrays.links["factor"]
    carried, fastest = np.zeros(arrays.links.size), np.zeros(arrays.links.size)
    crossed = [list(row["links"][: row["num_links"]]) for row in rows]
    for row, crossing in zip(rows, crossed, strict=True):
        carried[crossing] += row["bytes_per_s"] * row["shares"][: row["num_links"]]
        fastest[crossing] = np.maximum(fastest[crossing], row["bytes_per_s"])
    assert (carried <= capacity * (1 + 1e-9)).all()
    is_full = carried >= capacity * (1 - 1e-9)
    for row, crossing in zip(rows, crossed, strict=True):
        is_bottleneck = is_full[crossing] & (row["bytes_per_s"] >= fastest[crossing] * (1 - 1e-9))
        assert is_bottleneck.any()


def make_loaders(gpus: Sequence[str], states: Sequence[str], make_cluster) -> ClusterSpec:
    cluster = make_cluster(gpus)
    replicas = tuple(
        replace(replica, initial_state=state, engine_init_s=10.0)
        for replica, state in zip(cluster.replicas, states, strict=True)
    )
    return replace(cluster, replicas=replicas)


def test_a_degraded_link_slows_what_crosses_it(make_cluster, make_workload):
    cluster = make_loaders(["H100-80G", "H100-80G"], [InitialState.READY, InitialState.STOPPED],
                           make_cluster)  # fmt: skip
    workload = make_workload([100.0], [1], [1])
    moments = []
    for factor in (1.0, 0.5):
        fleet = SimulatedFleet(cluster, workload)
        fleet.reset(seed=0)
        fleet.start(1)
        fleet.degrade_link("s0/disk", factor)
        while not fleet.arrays.replicas["is_up"][1]:
            fleet.advance(0.01)
        moments.append(fleet.now_s)
    load_s = 16_060_522_496 / 1.7e9
    assert moments == pytest.approx([load_s + 10.0, 2 * load_s + 10.0], abs=0.02)


def test_link_orders_name_what_is_wrong(make_cluster, make_workload):
    fleet = SimulatedFleet(make_cluster(), make_workload([0.0], [1], [1]))
    fleet.reset(seed=0)
    with pytest.raises(ValueError, match="unknown link 's0/uplnk'; did you mean 's0/uplink'"):
        fleet.degrade_link("s0/uplnk", 0.5)
    with pytest.raises(ValueError, match=r"factor must be in \[0, 1\], got 1.5"):
        fleet.degrade_link("s0/uplink", 1.5)


def test_path_and_latency_of_a_transfer_are_the_topology_s(make_cluster, make_workload):
    arrays = make_links(make_cluster, make_workload)
    cluster = make_cluster(["H100-80G"] * 2 + ["A100-80G"] * 2 + ["L40S-48G"] * 2)
    table = links(cluster)
    for pair in ((0, 1), (0, 3), (4, 5), (5, 0)):
        sim = handle(arrays)[0]
        transfers.add_between(sim, KV_TRANSFER, 0, *pair)
        row = arrays.transfers[int(arrays.fleet[0]["num_transfers"]) - 1]
        transfers.start(sim, row, 1.0, 2.0)
        names = [crossing.link for crossing in path(cluster, *pair)]
        assert [list(table)[k] for k in row["links"][: row["num_links"]]] == names
        latency_s = sum(table[name].latency_s for name in names)
        assert row["begins_at_s"] == pytest.approx(2.0 + latency_s)
