"""A rollout with the truth in it runs as the simulator does, and obeys what holds for any."""

import numpy as np
import pytest

from trimtab.env.knobs import Knobs
from trimtab.env.lookahead.settings import LookaheadSettings
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.faults import FaultConfig
from trimtab.env.simulator.lookahead import run_out
from trimtab.env.simulator.setup import FleetConfig

SCORER = Knobs.of(scorer_weight=1.0, slo_margin=1.0)
# All are taken, so that the queues get long.
LOOKAHEAD = LookaheadSettings(num_candidates=1)
CONFIG = FleetConfig(faults=FaultConfig(), scrape_drop_frac=0.0, lookahead=LOOKAHEAD)
# One iteration with a whole chunk on the replica of these tests: prefill progress is estimated.
STEP_S = 0.06


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
    assert jobs.size > 40
    waits = np.isnan(jobs["streamed_at_s"])
    assert 3 < waits.sum() < jobs.size
    np.testing.assert_allclose(jobs["first_token_s"], requests["first_token_s"], atol=STEP_S)
    np.testing.assert_allclose(jobs["finish_s"], requests["finish_s"], atol=STEP_S)
    assert goodput == pytest.approx(requests["weight"].sum())


@pytest.mark.parametrize("limits", [{"max_num_seqs": 8}, {"kv_pages": 1500}], ids=str)
def test_with_the_truth_it_waits_for_slots_and_memory_too(foretell, limits):
    jobs, requests, goodput = foretell(1, **limits)
    np.testing.assert_allclose(jobs["finish_s"], requests["finish_s"], atol=3 * STEP_S)
    assert goodput == pytest.approx(requests["weight"].sum())


@pytest.fixture(scope="module")
def busy(make_cluster, make_random_workload):
    """A fleet of one replica whose mirror tests write on."""
    workload = make_random_workload(10, rate_rps=10.0, seed=0, num_prompts=0)
    fleet = SimulatedFleet(make_cluster(["A100-80G"], kv_pages=3000), workload, CONFIG)
    fleet.reset(seed=0, knobs=SCORER)
    return fleet


def write_rows(fleet: SimulatedFleet, rng: np.random.Generator, num_rows: int) -> None:
    """Fill the mirror with requests in all stages, and the row behind them with a new one."""
    mirror, rows = fleet.arrays.mirrors[0:1], fleet.arrays.mirror_rows[0, : num_rows + 1]
    now_s = fleet.now_s
    rows["key"] = np.arange(num_rows + 1)
    rows["priority"] = rng.integers(2, size=rows.size)
    rows["input_tokens"] = rows["uncached_tokens"] = rng.integers(1, 3000, size=rows.size)
    rows["num_sequences"] = 1
    rows["weight"] = rng.integers(1, 3, size=rows.size)
    rows["ttft_slo_s"], rows["tpot_slo_s"] = rng.uniform(0.1, 2.0), rng.uniform(0.015, 0.06)
    rows["arrival_s"] = rows["placed_s"] = now_s - np.sort(rng.uniform(0.0, 1.0, rows.size))[::-1]
    is_running = rng.random(rows.size) < 0.7
    is_running[-1], rows["arrival_s"][-1], rows["placed_s"][-1] = False, now_s, now_s
    rows["first_token_s"] = np.where(is_running, now_s - rng.uniform(0.0, 1.0, rows.size), np.nan)
    rows["generated_tokens"] = np.where(is_running, rng.integers(1, 40, rows.size), 0)
    rows["lengths"][:, 0] = rows["generated_tokens"] + rng.integers(1, 300, rows.size)
    mirror["num_rows"] = num_rows
    mirror["progress_at_s"] = now_s - rng.uniform(0.0, 0.2)
    mirror["stepped_at_s"] = now_s - rng.uniform(0.0, 0.02)


def test_one_request_more_does_not_help_the_others(busy):
    rng, gains, num_lost = np.random.default_rng(0), [], 0
    for num_rows in rng.integers(1, 60, size=300):
        write_rows(busy, rng, int(num_rows))
        without = run_out(busy.handle, 0, 0, 0, False)
        assert without == pytest.approx(weight_met(busy, num_rows))
        total = run_out(busy.handle, 0, 0, 1, False)
        assert total == pytest.approx(weight_met(busy, num_rows + 1))
        gains.append(weight_met(busy, num_rows) - without)
        num_lost += gains[-1] < 0
    # Batches fall otherwise, which may by chance save one that is on the brink.
    assert max(gains) <= 2.0
    assert np.mean(np.array(gains) > 0) < 0.02
    assert num_lost > 20


def weight_met(fleet: SimulatedFleet, num_jobs: int) -> float:
    jobs = fleet.arrays.ahead_jobs[: int(num_jobs)]
    return float(jobs["weight"][met(jobs)].sum())


def test_what_has_missed_its_limit_counts_for_nothing(busy):
    write_rows(busy, np.random.default_rng(1), 30)
    rows = busy.arrays.mirror_rows[0, :30]
    rows["ttft_slo_s"] = rows["tpot_slo_s"] = 100.0
    assert run_out(busy.handle, 0, 0, 0, False) == pytest.approx(rows["weight"].sum())
    rows["ttft_slo_s"][:10] = 1e-6
    assert run_out(busy.handle, 0, 0, 0, False) == pytest.approx(rows["weight"][10:].sum())
