"""General properties: no idling beside work, no time travel, more load costs, other processes."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.env.cluster_file import load_cluster
from trimtab.env.knobs import Knobs
from trimtab.env.simulated_fleet import SimulatedFleet, run_workload
from trimtab.env.simulator.faults import FaultConfig
from trimtab.env.simulator.layout import FAILED, FINISHED, NONE, NUM_PRIORITIES, SHED
from trimtab.env.simulator.setup import FleetConfig
from trimtab.env.simulator.workload import compile_workload
from trimtab.traces.synthetic import SyntheticConfig, generate

GPU_NAMES = ("H100-80G", "A100-80G", "L40S-48G")
ROUND_ROBIN = Knobs.of(round_robin_weight=1.0)
LEAST_REQUESTS = Knobs.of(outstanding_requests_weight=1.0)
SCORER = Knobs.of(scorer_weight=1.0, shed_enabled=1.0)
POLICIES = {"round_robin": ROUND_ROBIN, "least_requests": LEAST_REQUESTS, "scorer": SCORER}
TROUBLE = FleetConfig(
    faults=FaultConfig(
        replica_slowdowns_per_hour=400.0, crashes_per_hour=120.0, restart_span_s=(0.5, 4.0)
    )
)
QUICK = {"deadline": None, "derandomize": True, "database": None}
LOADS = {
    "seed": st.integers(0, 2**20),
    "policy": st.sampled_from(sorted(POLICIES)),
    "kv_pages": st.sampled_from([130, 200, 400, None]),
    "max_num_seqs": st.sampled_from([1, 3, 16, 256]),
    "rate_rps": st.floats(2.0, 60.0),
    "num_prompts": st.sampled_from([0, 3, 20]),
}


@pytest.fixture(scope="module")
def make_fleet(make_cluster, make_random_workload):
    def make(seed, policy, kv_pages, max_num_seqs, rate_rps, num_prompts, config=None):
        workload = make_random_workload(
            150, rate_rps=rate_rps, seed=seed, mean_output_tokens=150.0, num_prompts=num_prompts
        )
        cluster = make_cluster(GPU_NAMES, kv_pages=kv_pages, max_num_seqs=max_num_seqs)
        fleet = SimulatedFleet(cluster, workload, config)
        fleet.reset(seed=seed, knobs=POLICIES[policy])
        return fleet

    return make


def covered_s(starts_s: np.ndarray, ends_s: np.ndarray) -> float:
    """Length of the union of some spans."""
    total_s, until_s = 0.0, -np.inf
    for start_s, end_s in sorted(zip(starts_s, ends_s, strict=True)):
        total_s += max(0.0, end_s - max(start_s, until_s))
        until_s = max(until_s, end_s)
    return total_s


@settings(max_examples=40, **QUICK)
@given(**LOADS)
def test_replica_computes_while_it_has_a_request_and_only_then(make_fleet, **load):
    """Busy time is the time during which at least one request is placed and has not ended."""
    fleet = make_fleet(**load)
    fleet.drain()
    requests, replicas = fleet.requests, fleet.arrays.replicas
    assert fleet.num_open == 0
    for r, replica in enumerate(replicas):
        own = requests[requests["replica"] == r]
        expected_s = covered_s(own["ready_s"], own["finish_s"])
        assert replica["busy_s"] == pytest.approx(expected_s, abs=1e-7)


def next_to_admit(fleet: SimulatedFleet, r: int) -> np.ndarray | None:
    """The waiting request whose turn it is, if one is ready."""
    replica = fleet.arrays.replicas[r]
    for k in range(NUM_PRIORITIES):
        head = int(replica["waiting_head"][k])
        if head != NONE and fleet.arrays.requests[head]["ready_s"] <= replica["clock_s"]:
            return fleet.arrays.requests[head]
    return None


@settings(max_examples=40, **QUICK)
@given(moments=st.lists(st.floats(0.01, 1.0), min_size=8, max_size=8), **LOADS)
def test_no_request_waits_beside_room_for_it(make_fleet, moments, **load):
    """Slots, token budget or KV pages are short whenever a ready request waits."""
    fleet = make_fleet(**load, config=TROUBLE)
    page_tokens = int(fleet.arrays.fleet[0]["page_tokens"])
    block_pages = int(fleet.arrays.fleet[0]["block_pages"])
    for span_s in moments:
        fleet.run_until(fleet.now_s + span_s)
        for r, replica in enumerate(fleet.arrays.replicas):
            request = next_to_admit(fleet, r)
            if request is None or not replica["is_up"] or replica["has_preempted"]:
                continue
            num_running = replica["num_prefilling"] + replica["num_decoding"]
            budget = max(replica["max_batch_tokens"] - replica["num_decoding"], page_tokens)
            reserve = int(replica["reserve_pages"]) if num_running else 0
            free = replica["free_pages"] + replica["num_evictable_blocks"] * block_pages
            tokens = request["query"]["input_tokens"] + request["generated_tokens"]
            is_full = num_running >= replica["max_num_seqs"]
            is_prefill_full = replica["prefill_left_tokens"] >= budget
            assert is_full or is_prefill_full or -(-tokens // page_tokens) > free - reserve


@settings(max_examples=30, **QUICK)
@given(spans=st.lists(st.floats(1e-4, 1.5), min_size=6, max_size=6), **LOADS)
def test_the_past_stays_as_it_was(make_fleet, spans, **load):
    """Clocks run forward, no moment lies ahead of them, and what is written stays written."""
    fleet = make_fleet(**load, config=TROUBLE)
    before, clock_s = fleet.requests.copy(), fleet.arrays.replicas["clock_s"].copy()
    for span_s in spans:
        fleet.run_until(fleet.now_s + span_s)
        assert (fleet.arrays.replicas["clock_s"] >= clock_s).all()
        assert (fleet.arrays.replicas["clock_s"] <= fleet.now_s + 1e-9).all()
        after = fleet.requests
        for name in ("first_token_s", "finish_s"):
            known = np.isfinite(before[name])
            np.testing.assert_array_equal(after[name][: before.size][known], before[name][known])
            new = after[name][np.isfinite(after[name])]
            assert (new <= fleet.now_s).all()
        is_over = np.isin(before["status"], [FINISHED, SHED, FAILED])
        # As bytes: a request that was refused has no first token, and NaN is not equal to itself.
        assert after[: before.size][is_over].tobytes() == before[is_over].tobytes()
        before, clock_s = after.copy(), fleet.arrays.replicas["clock_s"].copy()


@settings(max_examples=30, **QUICK)
@given(cut=st.floats(0.1, 0.9), **LOADS)
def test_the_future_has_no_influence(make_fleet, cut, **load):
    """Requests that come later may be anything: what happened before them is the same."""
    fleet, other = (make_fleet(**load, config=TROUBLE) for _ in range(2))
    moment_s = cut * fleet.workload.span_s
    table = other.arrays.requests
    is_later = table["arrival_s"] >= moment_s
    table["output_tokens"][is_later] = 1 + table["output_tokens"][is_later] // 3
    table["query"]["input_tokens"][is_later] += 700
    for one in (fleet, other):
        one.run_until(moment_s)
    assert 0 < fleet.requests.size < table.size
    assert fleet.requests.tobytes() == other.requests.tobytes()
    assert fleet.arrays.replicas.tobytes() == other.arrays.replicas.tobytes()


def mean_e2e_s(cluster, workload) -> float:
    requests = run_workload(cluster, workload, LEAST_REQUESTS).requests
    assert (requests["status"] == FINISHED).all()
    return float((requests["finish_s"] - requests["arrival_s"]).mean())


# Placement on unlike GPUs has anomalies: another order of arrivals can happen to use the fast ones
# better. Of 800 random pairs, 5 had the lower mean under more load, by 5.4 % at most.
MONOTONE_TOLERANCE_FRAC = 0.08


@settings(max_examples=25, **QUICK)
@given(
    seed=st.integers(0, 2**20),
    max_num_seqs=st.sampled_from([4, 16, 64]),
    rate_rps=st.floats(2.0, 40.0),
    factor=st.floats(1.1, 3.0),
)
def test_more_load_never_lowers_mean_latency(
    make_cluster, make_workload, make_random_workload, seed, max_num_seqs, rate_rps, factor
):
    cluster = make_cluster(GPU_NAMES, max_num_seqs=max_num_seqs)
    base = make_random_workload(300, rate_rps=rate_rps, seed=seed, num_prompts=0).requests
    arrival_s, inputs = base["arrival_s"], base["query"]["input_tokens"]
    outputs, priority = base["output_tokens"], base["query"]["priority"]

    def make(at_s, copies):
        columns = (np.tile(column, copies) for column in (inputs, outputs))
        order = np.argsort(at_s, kind="stable")
        first, second = (column[order] for column in columns)
        return make_workload(at_s[order], first, second, priority=np.tile(priority, copies)[order])

    alone_s = mean_e2e_s(cluster, make(arrival_s, 1))
    faster_s = mean_e2e_s(cluster, make(arrival_s / factor, 1))
    rng = np.random.default_rng(seed)
    more = np.concatenate([arrival_s, rng.uniform(0.0, arrival_s[-1], arrival_s.size)])
    more_s = mean_e2e_s(cluster, make(more, 2))
    assert faster_s >= alone_s * (1.0 - MONOTONE_TOLERANCE_FRAC)
    assert more_s >= alone_s * (1.0 - MONOTONE_TOLERANCE_FRAC)


def run_digest() -> str:
    """Hash of everything that happened to the requests of a troubled run of the bundled fleet."""
    trace = generate(SyntheticConfig(num_requests=1500, rate_rps=60.0, seed=3, block_tokens=128))
    workload = compile_workload(trace, name="digest")
    fleet = run_workload(load_cluster("demo-16"), workload, SCORER, config=TROUBLE, seed=5)
    assert (fleet.requests["status"] == FINISHED).sum() > 500
    return hashlib.sha256(fleet.requests.tobytes()).hexdigest()


def test_another_process_makes_the_same_run():
    """Also under another hash seed, on which the order of Python's sets depends."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += "from test_properties import run_digest; print(run_digest())"
    environment = os.environ | {"PYTHONHASHSEED": "4321"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == run_digest()
