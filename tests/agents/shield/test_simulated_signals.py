"""What the controller reads off a simulation: live counts, pages and probes, and no more."""

import numpy as np
import pytest
from numba import njit

from trimtab.agents.shield.signals import make_signals
from trimtab.agents.shield.simulated_signals import begin_signals, read_signals
from trimtab.env.simulated_fleet import SimulatedFleet

TICK_S = 0.01


# Not cached: numba would not see that what it calls has changed.
@njit(error_model="numpy")
def read(handle, fleet_signals, signals, num_free, is_probing):
    """Read the signals of a simulation, from Python."""
    read_signals(handle[0], fleet_signals, signals, num_free, is_probing)


def readings(fleet, span_s, is_probing=lambda i: True):
    """Signals every 10 ms as arrays [ticks, 1] and [ticks, R]."""
    num = fleet.arrays.replicas.size
    (totals, signals), scratch = make_signals(num), np.zeros(num, np.int64)
    begin_signals(totals, signals)
    all_totals, all_signals = [], []
    for i in range(1, round(span_s / TICK_S) + 1):
        fleet.run_until(i * TICK_S)
        read(fleet.handle, totals, signals, scratch, is_probing(i))
        all_totals.append(totals.copy())
        all_signals.append(signals.copy())
    return np.array(all_totals), np.array(all_signals)


@pytest.fixture(scope="module")
def slow_prefill(make_cluster, make_workload):
    """One slow GPU with two prompts, of which an iteration takes longer than 500 ms."""
    cluster = make_cluster(["L40S-48G"], max_batch_tokens=16384)
    workload = make_workload([0.105, 0.155], [16000, 16000], [50, 50])
    fleet = SimulatedFleet(cluster, workload)
    fleet.reset(seed=0)
    return readings(fleet, 4.0)


def test_a_long_iteration_counts_as_busy_while_it_lasts(slow_prefill):
    _, signals = slow_prefill
    first_s = signals["progress_at_s"][:, 0]
    busy_s = signals["busy_s"][:, 0]
    at_work = signals["outstanding_requests"][:, 0] > 0
    # Nothing came out for more than half a second ...
    assert (np.arange(1, 401) * TICK_S - first_s)[at_work].max() > 0.5
    # ... and yet it was at work in every tick but the first.
    gained_s = np.diff(busy_s)[at_work[1:] & at_work[:-1]]
    assert gained_s[1:-1] == pytest.approx(TICK_S, abs=1e-6)


def test_counts_of_the_gateway_are_live_and_pages_are_as_old_as_their_scrape(slow_prefill):
    totals, signals = slow_prefill
    arrived, outstanding = totals["num_arrived"][:, 0], signals["outstanding_requests"][:, 0]
    assert list(np.flatnonzero(np.diff(arrived)) + 1) == [10, 15]
    assert list(arrived[[9, 10, 15]]) == list(outstanding[[9, 10, 15]]) == [0, 1, 2]
    assert totals["arrived_tokens"][-1, 0] == 32_000
    assert outstanding[-1] == 0
    scraped_at_s = signals["scraped_at_s"][:, 0]
    for name in ("running_requests", "waiting_requests", "kv_usage_frac"):
        changes = np.flatnonzero(np.diff(signals[name][:, 0]))
        assert changes.size
        assert (np.diff(scraped_at_s)[changes] > 0).all()


def test_busy_time_stands_where_the_last_probe_left_it(make_cluster, make_workload):
    fleet = SimulatedFleet(make_cluster(["L40S-48G"]), make_workload([0.0], [4000], [200]))
    fleet.reset(seed=0)
    _, signals = readings(fleet, 1.0, is_probing=lambda i: i % 10 == 0)
    probed_at_s, busy_s = signals["probed_at_s"][:, 0], signals["busy_s"][:, 0]
    assert list(np.unique(probed_at_s)) == pytest.approx(list(np.arange(0, 1.01, 0.1)))
    assert (np.diff(busy_s)[np.diff(probed_at_s) == 0] == 0).all()
    assert busy_s[-1] == pytest.approx(1.0, abs=0.01)
