"""Small runs whose every moment can be computed by hand from the iteration time."""

import numpy as np
import pytest

from trimtab.env.knobs import Knobs
from trimtab.env.latency import base_time_s, context_time_s, iteration_time_s
from trimtab.env.simulated_fleet import SimulatedFleet, run_workload
from trimtab.env.simulator.layout import FAILED, FINISHED
from trimtab.env.simulator.setup import FleetConfig, replica_coefficients

FIRST = Knobs.of()  # no term is on: ties go to the first replica


def chunk_s(coefficients, tokens: int, start: int) -> float:
    return iteration_time_s(coefficients, tokens, start, 0, 0)


def decode_s(coefficients, contexts) -> float:
    """Time of decode iterations of one sequence, by the context tokens that each reads."""
    return sum(iteration_time_s(coefficients, 0, 0, 1, context) for context in contexts)


@pytest.mark.parametrize("is_late", [False, True])
def test_one_request_alone(make_cluster, make_workload, is_late):
    arrival_s = 3.21 if is_late else 0.0
    cluster = make_cluster(max_batch_tokens=512)
    c = replica_coefficients(cluster)[0]
    fleet = run_workload(cluster, make_workload([arrival_s], [1200], [40]), FIRST)
    (request,) = fleet.requests
    ttft_s = chunk_s(c, 512, 0) + chunk_s(c, 512, 512) + chunk_s(c, 176, 1024)
    assert request["first_token_s"] == pytest.approx(arrival_s + ttft_s, abs=1e-12)
    # The second token reads the prompt and the first token, and so on; 40 tokens, 39 decodes.
    span_s = decode_s(c, range(1201, 1240))
    assert request["finish_s"] == pytest.approx(arrival_s + ttft_s + span_s, abs=1e-12)
    assert fleet.arrays.replicas["busy_s"][0] == pytest.approx(ttft_s + span_s)
    assert fleet.arrays.replicas["prefill_s"][0] == pytest.approx(ttft_s)


def test_one_token_ends_with_prefill(make_cluster, make_workload):
    cluster = make_cluster()
    fleet = run_workload(cluster, make_workload([0.0], [1], [1]), FIRST)
    (request,) = fleet.requests
    assert request["finish_s"] == request["first_token_s"]
    c = replica_coefficients(cluster)[0]
    assert request["finish_s"] == pytest.approx(chunk_s(c, 1, 0), abs=1e-12)


def test_energy_of_idle_decode_and_prefill(make_cluster, make_workload):
    fleet = run_workload(
        make_cluster(max_batch_tokens=512), make_workload([1.0], [512], [30]), FIRST
    )
    (replica,), (request,) = fleet.arrays.replicas, fleet.requests
    prefill_s = request["first_token_s"] - 1.0
    decode_span_s = request["finish_s"] - request["first_token_s"]
    idle_s = fleet.now_s - prefill_s - decode_span_s
    expected_j = (
        replica["prefill_w"] * prefill_s
        + replica["decode_w"] * decode_span_s
        + replica["idle_w"] * idle_s
    )
    assert replica["energy_j"] == pytest.approx(expected_j)


def test_two_requests_share_chunks_in_order(make_cluster, make_workload):
    cluster = make_cluster(max_batch_tokens=512)
    c = replica_coefficients(cluster)[0]
    workload = make_workload([0.0, 1e-4], [1000, 300], [2, 3])
    first, second = run_workload(cluster, workload, FIRST).requests
    # 512 of the first; its other 488 and 24 of the second; 276 beside the first's decode.
    positions = 488 * 512 + 488 * 489 / 2 + 24 * 25 / 2
    a_s = chunk_s(c, 512, 0) + base_time_s(c, 512, positions, 0)
    b_s = a_s + iteration_time_s(c, 276, 24, 1, 1001)
    assert first["first_token_s"] == pytest.approx(a_s, abs=1e-12)
    assert first["finish_s"] == pytest.approx(b_s, abs=1e-12)
    assert second["first_token_s"] == pytest.approx(b_s, abs=1e-12)
    assert second["finish_s"] == pytest.approx(b_s + decode_s(c, [301, 302]), abs=1e-12)


def test_decode_comes_first_in_the_token_budget(make_cluster, make_workload):
    """A budget of 64 beside one decode leaves 63 prompt tokens an iteration."""
    cluster = make_cluster(max_batch_tokens=64)
    c = replica_coefficients(cluster)[0]
    fleet = run_workload(cluster, make_workload([0.0, 1e-4], [64, 126], [100, 1]), FIRST)
    expected_s = chunk_s(c, 64, 0)
    for i in range(2):
        expected_s += base_time_s(c, 63, 63 * 63 * i + 63 * 32.0, 1)
        expected_s += (65 + i) * context_time_s(c, True)
    assert fleet.requests["first_token_s"][1] == pytest.approx(expected_s, abs=1e-12)


def test_slots_make_requests_wait(make_cluster, make_workload):
    cluster = make_cluster(max_num_seqs=1)
    first, second = run_workload(
        cluster, make_workload([0.0, 0.001], [100, 100], [50, 5]), FIRST
    ).requests
    c = replica_coefficients(cluster)[0]
    assert second["first_token_s"] == pytest.approx(first["finish_s"] + chunk_s(c, 100, 0))


def test_urgent_requests_are_admitted_first(make_cluster, make_workload):
    workload = make_workload([0.0, 0.001, 0.002], [100, 100, 100], [50, 5, 5], priority=[0, 1, 0])
    requests = run_workload(make_cluster(max_num_seqs=1), workload, FIRST).requests
    assert requests["first_token_s"][2] < requests["first_token_s"][1]


@pytest.mark.parametrize(("priority", "victim"), [([0, 0, 0], 2), ([0, 1, 0], 1), ([1, 0, 0], 0)])
def test_latest_of_the_least_urgent_is_preempted(make_cluster, make_workload, priority, victim):
    """Three times 500 + 260 tokens outgrow 130 pages of 16 tokens; two times do not."""
    workload = make_workload([0.0, 1e-4, 2e-4], [500] * 3, [260] * 3, priority=priority)
    fleet = run_workload(make_cluster(kv_pages=130), workload, FIRST)
    requests, others = fleet.requests, [i for i in range(3) if i != victim]
    assert (requests["status"] == FINISHED).all()
    assert requests["num_preemptions"][victim] == 1
    assert (requests["num_preemptions"][others] == 0).all()
    assert requests["finish_s"][victim] > requests["finish_s"][others].max()
    # It keeps the token that its client has, and computes nothing twice but its KV.
    assert requests["first_token_s"][victim] < requests["finish_s"][others].min()
    assert fleet.arrays.replicas["prefill_tokens"][0] > 3 * 500 + 500


def test_request_that_outgrows_kv_fails_alone(make_cluster, make_workload):
    """The one that waits behind it fits by itself and must be served."""
    workload = make_workload([0.0, 0.001], [1500, 1800], [1000, 10])
    requests = run_workload(make_cluster(kv_pages=130), workload, FIRST).requests
    assert requests["status"].tolist() == [FAILED, FINISHED]
    # 130 pages hold 2080 tokens; the last token out of them is not stored itself.
    assert requests["generated_tokens"][0] == 2080 - 1500 + 1
    assert requests["first_token_s"][1] > requests["finish_s"][0]


def test_urgent_request_enters_the_iteration_after_a_preemption(make_cluster, make_workload):
    """Room that a preemption made is offered at the next iteration, not when the batch changes.

    Two times 63 pages run when an urgent request of 32 comes; the batch soon outgrows 130 pages.
    """
    workload = make_workload(
        [0.0, 1e-4, 0.05], [1000, 1000, 500], [400, 400, 10], priority=[0, 1, 0]
    )
    # Without scrapes, nothing but its own events calls at the replica.
    config = FleetConfig(scrape_interval_s=1e3)
    fleet = SimulatedFleet(make_cluster(kv_pages=130), workload, config)
    fleet.reset(seed=0, knobs=FIRST)
    probe = fleet.branch()
    while probe.arrays.replicas["num_preemptions"][0] == 0:
        probe.advance(0.001)
    fleet.drain()
    assert (fleet.requests["status"] == FINISHED).all()
    assert fleet.requests["num_preemptions"].tolist() == [0, 1, 0]
    assert fleet.requests["first_token_s"][2] < probe.now_s + 0.1


def test_cached_prompt_is_not_computed_again(make_cluster, make_workload):
    cluster = make_cluster()
    c = replica_coefficients(cluster)[0]
    prompt = range(10)
    workload = make_workload(
        [0.0, 5.0, 10.0], [700, 700, 640], [5, 5, 5], prompts=[prompt, prompt, prompt]
    )
    requests = run_workload(cluster, workload, FIRST).requests
    assert requests["hit_tokens"].tolist() == [0, 640, 576]
    ttft_s = requests["first_token_s"] - requests["arrival_s"]
    assert ttft_s[1] == pytest.approx(chunk_s(c, 60, 640), abs=1e-12)
    # At least one token is computed, so the last of ten full blocks is done again.
    assert ttft_s[2] == pytest.approx(chunk_s(c, 64, 576), abs=1e-12)
    assert ttft_s[1] < ttft_s[0]


def test_blocks_are_shared_while_in_use(make_cluster, make_workload):
    """Ten requests of one prompt hold its blocks once: 32 pages and one or two each."""
    prompts = [range(8)] * 10
    workload = make_workload([0.0] + [0.5] * 9, [520] * 10, [400] * 10, prompts=prompts)
    fleet = SimulatedFleet(make_cluster(), workload)
    fleet.reset(seed=0, knobs=FIRST)
    fleet.advance(0.7)
    (replica,) = fleet.arrays.replicas
    assert replica["num_decoding"] == 10
    kv_tokens = replica["context_tokens"]
    assert replica["total_pages"] - replica["free_pages"] < 32 + (kv_tokens - 5120) / 16 + 20


@pytest.mark.parametrize(("pages", "kept_of_second"), [(64, 0), (60, 64)])
def test_least_recently_used_blocks_go_first(make_cluster, make_workload, pages, kept_of_second):
    """Three prompts of 8 blocks fill 96 of 130 pages; the first is used again; a large one comes.

    It takes 34 free pages and evicts the rest from the second prompt, tail before head.
    """
    first, second, third = range(0, 8), range(100, 108), range(200, 208)
    prompts = [first, second, third, first, (), first, third, second]
    tokens = [520] * 4 + [pages * 16] + [520] * 3
    workload = make_workload(np.arange(8.0), tokens, [1] * 8, prompts=prompts)
    requests = run_workload(make_cluster(kv_pages=130), workload, FIRST).requests
    assert (requests["status"] == FINISHED).all()
    assert requests["hit_tokens"].tolist() == [0, 0, 0, 512, 0, 512, 512, kept_of_second]


def test_batch_size_knobs_bind(make_cluster, make_workload):
    """Half of the slots and a quarter of the token budget are used from the moment they are set."""
    workload = make_workload([0.0] * 8, [400] * 8, [300] * 8)
    fleet = SimulatedFleet(make_cluster(max_num_seqs=4, max_batch_tokens=512), workload)
    fleet.reset(seed=0, knobs=Knobs.of(max_num_seqs_frac=0.5, batch_tokens_scale=0.25))
    fleet.advance(1.0)
    (replica,) = fleet.arrays.replicas
    assert replica["num_decoding"] == 2
    c = replica_coefficients(fleet.cluster)[0]
    expected_s = sum(
        chunk_s(c, tokens, start) for tokens, start in ((128, 0), (128, 128), (128, 256))
    )
    positions = 16 * 384 + 16 * 17 / 2 + 112 * 113 / 2
    expected_s += base_time_s(c, 128, positions, 0)
    assert fleet.requests["first_token_s"][0] == pytest.approx(expected_s, abs=1e-12)
