"""A replica with one slot is a queue of one server: Lindley's recursion and Pollaczek-Khinchine."""

import numpy as np
import pytest

from trimtab.env.knobs import Knobs
from trimtab.env.latency import iteration_time_s
from trimtab.env.simulated_fleet import run_workload
from trimtab.env.simulator.layout import FINISHED
from trimtab.env.simulator.setup import replica_coefficients

FIRST = Knobs.of()  # no term is on: all requests go to the one replica
NUM_REQUESTS = 60_000


def service_s(coefficients, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Time of one prefill chunk, and of one iteration for each further token, alone."""
    kinds = {
        (i, o): iteration_time_s(coefficients, i, 0, 0, 0)
        + sum(iteration_time_s(coefficients, 0, 0, 1, i + k) for k in range(1, o))
        for i, o in set(zip(inputs.tolist(), outputs.tolist(), strict=True))
    }
    return np.array([kinds[one] for one in zip(inputs.tolist(), outputs.tolist(), strict=True)])


def lindley_waits_s(arrival_s: np.ndarray, span_s: np.ndarray) -> np.ndarray:
    """Waits of a first-come queue of one server: W' = max(0, W + S - gap)."""
    waits_s, free_s = np.zeros(arrival_s.size), 0.0
    for i, at_s in enumerate(arrival_s):
        waits_s[i] = max(0.0, free_s - at_s)
        free_s = max(free_s, at_s) + span_s[i]
    return waits_s


def pollaczek_khinchine_s(rate_rps: float, span_s: np.ndarray) -> float:
    """Mean wait in M/G/1: rate E[S^2] / (2 (1 - load))."""
    load = rate_rps * span_s.mean()
    return float(rate_rps * (span_s**2).mean() / (2.0 * (1.0 - load)))


@pytest.mark.parametrize("load_frac", [0.3, 0.7])
@pytest.mark.parametrize("kind", ["M/D/1", "M/G/1", "hyperexponential"])
def test_one_slot_is_a_queue_of_one_server(make_cluster, make_workload, kind, load_frac):
    """Each wait is that of the recursion; their mean is the formula's.

    The mean of 60 000 waits strays from the formula by 2 % (one standard deviation over ten seeds;
    3 % for the hyperexponential at load 0.7), the recursion's as much as the simulator's.
    """
    rng = np.random.default_rng(1)
    inputs, outputs = {
        "M/D/1": (np.full(NUM_REQUESTS, 300), np.full(NUM_REQUESTS, 1)),
        "M/G/1": (rng.integers(1, 8, NUM_REQUESTS) * 100, rng.integers(1, 12, NUM_REQUESTS)),
        "hyperexponential": (
            np.full(NUM_REQUESTS, 50),
            np.where(rng.random(NUM_REQUESTS) < 0.9, 2, 40),
        ),
    }[kind]
    cluster = make_cluster(max_num_seqs=1, max_batch_tokens=2048)
    span_s = service_s(replica_coefficients(cluster)[0], inputs, outputs)
    rate_rps = load_frac / span_s.mean()
    arrival_s = np.cumsum(rng.exponential(1.0 / rate_rps, NUM_REQUESTS))
    requests = run_workload(cluster, make_workload(arrival_s, inputs, outputs), FIRST).requests
    assert (requests["status"] == FINISHED).all()
    waits_s = requests["finish_s"] - requests["arrival_s"] - span_s
    np.testing.assert_allclose(waits_s, lindley_waits_s(arrival_s, span_s), rtol=0, atol=1e-6)
    assert waits_s.mean() == pytest.approx(pollaczek_khinchine_s(rate_rps, span_s), rel=0.05)
