"""Engine memory by hand: swap, the host tier, adapters, several sequences, windows, answers."""

import numpy as np
import pytest

from trimtab.env.cluster import Preemption, page_copy_s
from trimtab.env.knobs import Knobs
from trimtab.env.latency import HALF_TILE_TOKENS, iteration_time_s
from trimtab.env.simulated_fleet import SimulatedFleet, run_workload
from trimtab.env.simulator.layout import FAILED, FINISHED, WAITING
from trimtab.env.simulator.setup import FleetConfig, replica_coefficients

FIRST = Knobs.of()  # no term is on: ties go to the first replica
# Llama 3 8B in BF16: 2 * 32 layers * 8 heads * 128 values * 2 bytes * 16 tokens.
PAGE_BYTES = 2 * 32 * 8 * 128 * 2 * 16
BLOCK_PAGES = 4


def chunk_s(c, tokens: int, start: int) -> float:
    return iteration_time_s(c, tokens, start, 0, 0)


def decode_s(c, contexts, sequences: int = 1) -> float:
    """Time of decode iterations of equal sequences, by the context tokens that each reads."""
    return sum(iteration_time_s(c, 0, 0, sequences, sequences * context) for context in contexts)


def swapping(host_pages: int) -> dict[str, object]:
    return {"preemption": Preemption.SWAP, "host_kv_bytes": host_pages * PAGE_BYTES}


def test_copies_reach_25_of_32_gb_per_s(make_cluster):
    cluster = make_cluster(("A100-80G",))
    assert page_copy_s(cluster, cluster.replicas[0]) == pytest.approx(PAGE_BYTES / 25e9, rel=2e-3)


def test_blocks_of_the_engine_are_the_pages(make_cluster, make_workload):
    """100 pages hold 1600 tokens and no more, whatever the GPU's memory."""
    cluster = make_cluster(kv_blocks=100)
    workload = make_workload([0.0, 10.0], [1300, 1300], [301, 302])
    requests = run_workload(cluster, workload, FIRST).requests
    assert requests["status"].tolist() == [FINISHED, FAILED]
    # The last token is not stored itself.
    assert requests["generated_tokens"].tolist() == [301, 301]


def test_swapped_sequence_resumes_without_prefill(make_cluster, make_workload):
    """Two times 1000 + 400 tokens outgrow 130 pages; the later one waits in host memory."""
    cluster = make_cluster(kv_blocks=130, **swapping(100))
    c, copy_s = replica_coefficients(cluster)[0], page_copy_s(cluster, cluster.replicas[0])
    fleet = SimulatedFleet(cluster, make_workload([0.0, 1e-4], [1000] * 2, [400] * 2))
    fleet.reset(seed=0, knobs=FIRST)
    while fleet.arrays.replicas["num_preemptions"][0] == 0:
        fleet.advance(0.001)
    swapped = fleet.requests[1].copy()
    kv_tokens = 1000 + swapped["generated_tokens"] - 1
    assert swapped["status"] == WAITING
    assert swapped["host_pages"] == -(-kv_tokens // 16) == 65
    assert fleet.arrays.hosts["free_pages"][0] == 35
    fleet.drain()
    (replica,), (first, second) = fleet.arrays.replicas, fleet.requests
    assert replica["prefill_tokens"] == 2000
    assert replica["num_swaps"] == 1
    assert replica["copied_s"] == pytest.approx(2 * 65 * copy_s)
    assert fleet.arrays.hosts["free_pages"][0] == 100
    rest_s = decode_s(c, range(kv_tokens + 1, 1000 + 400))
    expected_s = first["finish_s"] + 65 * copy_s + rest_s
    assert second["finish_s"] == pytest.approx(expected_s, abs=1e-12)
    assert second["generated_tokens"] == 400


def test_copying_out_lengthens_the_iteration(make_cluster, make_workload):
    """The run with swap is behind the one with recompute by one copy when the first ends."""
    workload = make_workload([0.0, 1e-4], [1000] * 2, [400] * 2)
    cluster = make_cluster(kv_blocks=130, **swapping(100))
    by_swap = run_workload(cluster, workload, FIRST).requests
    by_recompute = run_workload(make_cluster(kv_blocks=130), workload, FIRST).requests
    copy_s = page_copy_s(cluster, cluster.replicas[0])
    assert by_swap["finish_s"][0] == pytest.approx(by_recompute["finish_s"][0] + 65 * copy_s)
    assert by_swap["finish_s"][1] < by_recompute["finish_s"][1]


def test_full_host_memory_means_recompute(make_cluster, make_workload):
    workload = make_workload([0.0, 1e-4], [1000] * 2, [400] * 2)
    runs = [
        run_workload(make_cluster(kv_blocks=130, **limits), workload, FIRST)
        for limits in (swapping(64), {})
    ]
    assert runs[0].arrays.replicas["num_swaps"][0] == 0
    np.testing.assert_array_equal(runs[0].requests["finish_s"], runs[1].requests["finish_s"])


def test_evicted_prompt_comes_back_from_the_host(make_cluster, make_workload):
    """A request of 107 of 130 pages evicts 3 of a prompt's 8 blocks; the third loads them."""
    cluster = make_cluster(kv_blocks=130, host_kv_bytes=40 * PAGE_BYTES, has_host_prefix_cache=True)
    c, copy_s = replica_coefficients(cluster)[0], page_copy_s(cluster, cluster.replicas[0])
    prompts = [range(8), (), range(8), range(8)]
    workload = make_workload(
        [0.0, 5.0, 10.0, 15.0], [520, 1700, 520, 520], [2, 1, 2, 2], prompts=prompts
    )
    fleet = run_workload(cluster, workload, FIRST)
    requests, (replica,) = fleet.requests, fleet.arrays.replicas
    assert requests["hit_tokens"].tolist() == [0, 0, 512, 512]
    ttft_s = requests["first_token_s"] - requests["arrival_s"]
    assert ttft_s[2] == pytest.approx(3 * BLOCK_PAGES * copy_s + chunk_s(c, 8, 512), abs=1e-12)
    # Then they are on the GPU again.
    assert ttft_s[3] == pytest.approx(chunk_s(c, 8, 512), abs=1e-12)
    assert replica["host_hit_tokens"] == 3 * 64
    # The gateway knows of the GPU only.
    assert requests["believed_uncached_tokens"].tolist() == [520, 1700, 520 - 320, 8]


def test_host_keeps_the_blocks_used_last(make_cluster, make_workload):
    """Two prompts of 8 blocks leave 66 pages; 107 evict the first and 3 blocks of the second.

    They go tail before head, and the host has room for 8: of the first, 5 at its head.
    """
    cluster = make_cluster(
        kv_blocks=130, host_kv_bytes=8 * BLOCK_PAGES * PAGE_BYTES, has_host_prefix_cache=True
    )
    first, second = range(8), range(100, 108)
    workload = make_workload(
        np.arange(5.0),
        [520, 520, 1700, 520, 520],
        [1] * 5,
        prompts=[first, second, (), first, second],
    )
    fleet = run_workload(cluster, workload, FIRST)
    assert fleet.requests["hit_tokens"].tolist() == [0, 0, 0, 320, 512]


def test_swapped_sequences_push_cached_blocks_out_of_the_host(make_cluster, make_workload):
    """66 pages of host memory hold 8 blocks of an evicted prompt until 65 pages are swapped."""
    cluster = make_cluster(kv_blocks=130, has_host_prefix_cache=True, **swapping(66))
    workload = make_workload(
        [0.0, 5.0, 5.0001, 30.0],
        [520, 1000, 1000, 520],
        [1, 400, 400, 1],
        prompts=[range(8), (), (), range(8)],
    )
    fleet = run_workload(cluster, workload, FIRST)
    assert fleet.arrays.replicas["num_swaps"][0] == 1
    assert fleet.requests["hit_tokens"].tolist() == [0, 0, 0, 0]
    assert (
        fleet.arrays.hosts["free_pages"][0] + fleet.arrays.hosts["num_cached_blocks"][0] * 4 == 66
    )


def test_adapter_is_loaded_once(make_cluster, make_workload):
    cluster = make_cluster(max_loras=2, adapter_bytes=50e6)
    c = replica_coefficients(cluster)[0]
    names = ["a", "b", "a", "c", "a", "b", None]
    workload = make_workload(np.arange(7.0), [100] * 7, [1] * 7, adapter=names)
    fleet = run_workload(cluster, workload, FIRST)
    ttft_s = fleet.requests["first_token_s"] - fleet.requests["arrival_s"]
    # H100: 64 GB/s of PCIe, of which copies reach 0.78.
    load_s = 50e6 / (0.78 * 64e9)
    # c takes the place of b, which was used before a; then b that of c.
    expected_s = chunk_s(c, 100, 0) + load_s * np.array([1, 1, 0, 1, 0, 1, 0])
    np.testing.assert_allclose(ttft_s, expected_s, atol=1e-12)
    (replica,) = fleet.arrays.replicas
    assert (replica["num_adapter_loads"], replica["num_adapter_hits"]) == (4, 2)


def test_request_without_adapter_slot_is_passed_over(make_cluster, make_workload):
    """One slot: b waits for both requests of a, and the one behind it does not wait for b."""
    workload = make_workload(
        [0.0, 0.001, 0.002, 0.003],
        [100] * 4,
        [50, 5, 80, 5],
        adapter=["a", "b", "a", None],
    )
    fleet = run_workload(make_cluster(max_loras=1), workload, FIRST)
    first, other, same, plain = fleet.requests
    assert same["first_token_s"] < first["finish_s"]
    assert plain["finish_s"] < first["finish_s"]
    c = replica_coefficients(fleet.cluster)[0]
    load_s = fleet.arrays.replicas["adapter_load_s"][0]
    assert other["first_token_s"] == pytest.approx(same["finish_s"] + load_s + chunk_s(c, 100, 0))


def test_adapters_do_not_share_kv(make_cluster, make_workload):
    workload = make_workload(
        np.arange(4.0), [520] * 4, [1] * 4, prompts=[range(8)] * 4, adapter=["a", "b", "a", None]
    )
    fleet = run_workload(make_cluster(max_loras=2), workload, FIRST)
    assert fleet.requests["hit_tokens"].tolist() == [0, 0, 512, 0]


def test_adapters_without_slots_cost_nothing(make_cluster, make_workload):
    columns = ([0.0, 0.1], [100] * 2, [20] * 2)
    named = run_workload(make_cluster(), make_workload(*columns, adapter=["a", "b"]), FIRST)
    plain = run_workload(make_cluster(), make_workload(*columns), FIRST)
    np.testing.assert_array_equal(named.requests["finish_s"], plain.requests["finish_s"])


def test_sequences_of_a_request_share_its_prompt(make_cluster, make_workload):
    """100 tokens fill 6 pages; each of 4 sequences has its own from the seventh on."""
    cluster = make_cluster(kv_blocks=200)
    c = replica_coefficients(cluster)[0]
    fleet = SimulatedFleet(cluster, make_workload([0.0], [100], [40], num_sequences=4))
    fleet.reset(seed=0, knobs=FIRST)
    while fleet.arrays.replicas["num_iterations"][0] < 30:
        fleet.advance(0.001)
    (replica,) = fleet.arrays.replicas
    kv_tokens = 100 + replica["decode_iteration"] - fleet.requests["joined_iteration"][0]
    assert replica["num_sequences"] == 4
    assert replica["context_tokens"] == 4 * kv_tokens
    assert 200 - replica["free_pages"] == 6 + 4 * (-(-kv_tokens // 16) - 6)
    fleet.drain()
    (request,) = fleet.requests
    finish_s = chunk_s(c, 100, 0) + decode_s(c, range(101, 140), sequences=4)
    assert request["finish_s"] == pytest.approx(finish_s, abs=1e-12)
    assert fleet.arrays.replicas["generated_tokens"][0] == 4 * 40
    assert fleet.arrays.replicas["free_pages"][0] == 200


def test_slots_count_sequences(make_cluster, make_workload):
    """Four slots: 3 sequences leave room for one more, not for two; eight never fit."""
    cluster = make_cluster(max_num_seqs=4)
    workload = make_workload(
        [0.0, 0.001, 0.002, 0.003], [100] * 4, [50, 5, 5, 5], num_sequences=[3, 2, 1, 8]
    )
    first, pair, single, many = run_workload(cluster, workload, FIRST).requests
    c = replica_coefficients(cluster)[0]
    # First come, first served: the single one behind the pair waits as well.
    assert pair["first_token_s"] == pytest.approx(first["finish_s"] + chunk_s(c, 200, 0), rel=0.05)
    assert single["first_token_s"] >= pair["first_token_s"]
    assert many["status"] == FAILED
    assert [r["status"] for r in (first, pair, single)] == [FINISHED] * 3


def test_recomputing_several_sequences_computes_each_answer(make_cluster, make_workload):
    """3 x 300 answer tokens outgrow 130 pages beside 1000 of another; the prompt comes once."""
    workload = make_workload(
        [0.0, 1e-4], [1000, 200], [400, 300], priority=[0, 1], num_sequences=[1, 3]
    )
    fleet = SimulatedFleet(make_cluster(kv_blocks=130), workload)
    fleet.reset(seed=0, knobs=FIRST)
    while fleet.arrays.replicas["num_preemptions"][0] == 0:
        fleet.advance(0.001)
    generated = int(fleet.requests["generated_tokens"][1])
    fleet.drain()
    assert (fleet.requests["status"] == FINISHED).all()
    assert fleet.requests["num_preemptions"].tolist() == [0, 1]
    assert fleet.arrays.replicas["prefill_tokens"][0] == 1200 + 200 + 3 * generated


@pytest.mark.parametrize("window_tokens", [64, 1210, 5000])
def test_windowed_layers_read_up_to_their_window(
    make_cluster, make_workload, sliding_window, window_tokens
):
    cluster = make_cluster(max_batch_tokens=512)
    with sliding_window(window_tokens):
        fleet = run_workload(cluster, make_workload([0.0], [1200], [40]), FIRST)
    c = fleet.arrays.actual[0]
    full_layers = c.copy()
    full_layers["window_tokens"] = 0
    (request,) = fleet.requests
    chunks = ((512, 0), (512, 512), (176, 1024))
    # Each chunk begins in the middle of a tile of queries.
    positions = sum(min(i, window_tokens) for i in range(1, 1201)) + HALF_TILE_TOKENS * 1200
    ttft_s = sum(chunk_s(full_layers, *chunk) for chunk in chunks)
    ttft_s += c["window_attention_s"] * positions
    assert request["first_token_s"] == pytest.approx(ttft_s, abs=1e-12)
    windowed = sum(min(context, window_tokens) for context in range(1201, 1240))
    span_s = decode_s(full_layers, range(1201, 1240)) + c["window_context_s"] * windowed
    assert request["finish_s"] == pytest.approx(ttft_s + span_s, abs=1e-12)


@pytest.mark.parametrize(
    ("session", "next_blocks", "hit_tokens"),
    [([1, 1], range(4), 192), ([1, 2], range(4), 64), ([1, 1], (0, 11, 12, 13), 192)],
)
def test_answer_stays_cached_for_the_next_turn(
    make_cluster, make_workload, session, next_blocks, hit_tokens
):
    """100 prompt and 93 answer tokens leave 192 in KV: three full blocks, one of them prompt."""
    workload = make_workload(
        [0.0, 10.0], [100, 300], [93, 5], prompts=[range(1), next_blocks], session=session
    )
    fleet = run_workload(make_cluster(), workload, FIRST)
    assert fleet.requests["hit_tokens"].tolist() == [0, hit_tokens]


@pytest.mark.parametrize(("input_tokens", "first_block"), [(190, 0), (300, 7)])
def test_answer_is_not_cached_for_another_prompt(
    make_cluster, make_workload, input_tokens, first_block
):
    """Neither for one shorter than prompt and answer nor for one that begins otherwise."""
    blocks = [first_block, *range(1, input_tokens // 64)]
    workload = make_workload(
        [0.0, 10.0], [100, input_tokens], [93, 5], prompts=[(0,), blocks], session=[1, 1]
    )
    fleet = run_workload(make_cluster(), workload, FIRST)
    assert fleet.requests["hit_tokens"][1] == (64 if first_block == 0 else 0)


def test_only_full_blocks_are_cached(make_cluster, make_workload):
    """A trace may hash the last, partial block of a prompt; engines do not cache it."""
    workload = make_workload([0.0, 10.0], [100, 100], [1, 1], prompts=[range(2)] * 2)
    assert workload.requests["num_blocks"].tolist() == [1, 1]
    assert run_workload(make_cluster(), workload, FIRST).requests["hit_tokens"].tolist() == [0, 64]


@pytest.mark.parametrize(("watermark_frac", "is_together"), [(0.0, True), (0.01, False)])
def test_watermark_keeps_pages_free_at_admission(
    make_cluster, make_workload, watermark_frac, is_together
):
    """98 and 32 of 130 pages: with one kept free, the second waits for the end of the first."""
    workload = make_workload([0.0, 0.001], [1560, 512], [8, 1])
    cluster = make_cluster(kv_blocks=130, kv_watermark_frac=watermark_frac)
    first, second = run_workload(cluster, workload, FIRST).requests
    assert (second["first_token_s"] < first["finish_s"]) == is_together


@pytest.mark.parametrize("num_sequences", [1, 3])
def test_decoding_request_goes_on_elsewhere(make_cluster, make_workload, num_sequences):
    cluster = make_cluster(("H100-80G", "A100-80G"), max_loras=1)
    workload = make_workload(
        [0.0], [100], [200], prompts=[range(1)], adapter="a", num_sequences=num_sequences
    )
    fleet = SimulatedFleet(cluster, workload, FleetConfig(scrape_interval_s=1e3))
    fleet.reset(seed=0, knobs=FIRST)
    fleet.advance(0.5)
    fleet.migrate(0, 1)
    fleet.advance(0.2)
    source, target = fleet.arrays.replicas
    request = fleet.requests[0]
    assert request["num_moves"] == 1
    block_pages = int(fleet.arrays.fleet["block_pages"][0])
    taken = target["decode_iteration"] - request["joined_iteration"]
    assert taken > 0
    kv_tokens = 100 + request["generated_tokens"] - 1 + taken
    assert source["num_sequences"] == source["context_tokens"] == source["num_leaving"] == 0
    assert source["free_pages"] + block_pages == source["total_pages"]
    assert (target["num_sequences"], target["num_coming"]) == (num_sequences, 0)
    assert target["context_tokens"] == num_sequences * kv_tokens
    pages = 6 + num_sequences * (-(-kv_tokens // 16) - 6)
    assert target["total_pages"] - target["free_pages"] == pages
    assert fleet.arrays.adapters["num_running"].tolist() == [[0], [1]]


def test_there_is_no_room_for_too_many_sequences(make_cluster, make_workload):
    cluster = make_cluster(("H100-80G", "A100-80G"), max_num_seqs=3)
    fleet = SimulatedFleet(cluster, make_workload([0.0] * 2, [100] * 2, [500] * 2, num_sequences=2))
    fleet.reset(seed=0, knobs=Knobs.of(round_robin_weight=1.0))
    fleet.advance(0.5)
    assert fleet.arrays.replicas["num_sequences"].tolist() == [2, 2]
    with pytest.raises(ValueError, match="request 0 cannot migrate to replica 1: it finds no room"):
        fleet.migrate(0, 1)
