"""A rollout with the truth in it runs as the simulator does, and obeys what holds for any."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.env.knobs import Knobs
from trimtab.env.lookahead.settings import LookaheadSettings
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.faults import FaultConfig
from trimtab.env.simulator.lookahead import run_out
from trimtab.env.simulator.setup import FleetConfig

SCORER = Knobs.of(scorer_weight=1.0)
# All are taken, so that the queues get long.
LOOKAHEAD = LookaheadSettings(num_candidates=1, margin=1.0)
CONFIG = FleetConfig(faults=FaultConfig(), scrape_drop_frac=0.0, lookahead=LOOKAHEAD)
PRESENT = 1.0


def met(jobs: np.ndarray) -> np.ndarray:
    """Whether each job meets its limits."""
    span_s = jobs["finish_s"] - jobs["first_token_s"]
    in_time = jobs["first_token_s"] <= jobs["ttft_due_s"]
    return (jobs["weight"] > 0) & in_time & (span_s <= jobs["tpot_limit_s"] * (jobs["length"] - 1))


@pytest.fixture(scope="module")
def foretell(make_cluster, make_random_workload):
    """Freeze a busy fleet, foretell one replica with true lengths, and let it go on."""

    def foretell(seed: int, *, num_requests: int = 120, max_sequences: int = 1, **limits: object):
        workload = make_random_workload(
            num_requests, rate_rps=40.0, seed=seed, mean_input_tokens=1500.0, num_prompts=0,
            max_tokens=9000, max_sequences=max_sequences,
        )  # fmt: skip
        workload.requests["query"]["ttft_slo_s"] = 1e3
        workload.requests["query"]["tpot_slo_s"] = 10.0
        fleet = SimulatedFleet(make_cluster(["A100-80G"] * 2, **limits), workload, CONFIG)
        fleet.reset(seed=seed, knobs=SCORER)
        fleet.run_until(workload.span_s + 1e-6)
        arrays = fleet.arrays
        run_out(fleet.handle, 0, 0, 0, True)
        rows = arrays.mirror_rows[0, : arrays.mirrors[0]["num_rows"]]
        rows["lengths"][:, 0] = arrays.requests["output_tokens"][rows["key"]]
        goodput = run_out(fleet.handle, 0, 0, 0, False)
        jobs = arrays.ahead_jobs[: rows.size].copy()
        keys = rows["key"][jobs["row"]]
        fleet.drain()
        return jobs, fleet.requests[keys].copy(), goodput

    return foretell


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_the_truth_it_foretells_the_simulator(foretell, seed):
    jobs, requests, goodput = foretell(seed)
    assert jobs.size > 20
    waits = np.isnan(jobs["streamed_at_s"])
    assert 3 < waits.sum() < jobs.size
    # Prefill progress is estimated, so moments are right to a few iterations of some 20 ms.
    np.testing.assert_allclose(jobs["first_token_s"], requests["first_token_s"], atol=0.25)
    np.testing.assert_allclose(jobs["finish_s"], requests["finish_s"], atol=0.25)
    assert goodput == pytest.approx(requests["weight"].sum())


def test_show(foretell):
    for seed in range(6):
        jobs, requests, _ = foretell(seed)
        w = np.isnan(jobs["streamed_at_s"])
        print(seed, jobs.size, w.sum(), "first", np.abs(jobs["first_token_s"] - requests["first_token_s"])[w].max(), "finish", np.abs(jobs["finish_s"] - requests["finish_s"]).max(), "span", requests["finish_s"].max() - requests["arrival_s"].max())
    for seed in range(3):
        jobs, requests, _ = foretell(seed, kv_pages=1500)
        w = np.isnan(jobs["streamed_at_s"])
        print("kv", seed, jobs.size, w.sum(), "first", np.abs(jobs["first_token_s"] - requests["first_token_s"])[w].max(), "finish", np.abs(jobs["finish_s"] - requests["finish_s"]).max(), "span", requests["finish_s"].max() - requests["arrival_s"].max(), requests["num_preemptions"].sum())
        jobs, requests, _ = foretell(seed, max_num_seqs=8, max_sequences=3)
        print("seqs", seed, jobs.size, w.sum(), "first", np.abs(jobs["first_token_s"] - requests["first_token_s"]).max(), "finish", np.abs(jobs["finish_s"] - requests["finish_s"]).max(), "span", requests["finish_s"].max() - requests["arrival_s"].max(), requests["num_preemptions"].sum())
