"""KV pages in the state by hand: the page-table map, fragmentation and contiguity, and hits."""

from dataclasses import replace

import numpy as np
import pytest

from trimtab.env.cluster import ClusterSpec
from trimtab.env.knobs import Knobs
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.workload import Workload
from trimtab.env.state.feature import Node

FIRST = Knobs.of()


def make_fleet(cluster: ClusterSpec, workload: Workload, until_s: float) -> SimulatedFleet:
    fleet = SimulatedFleet(cluster, workload)
    fleet.reset(seed=0, knobs=FIRST)
    fleet.advance(until_s)
    return fleet


def pages(fleet: SimulatedFleet, name: str) -> float:
    return float(fleet.state().feature(Node.REPLICA, name)[0])


def kv_tokens(fleet: SimulatedFleet) -> np.ndarray:
    """Tokens in KV of each decoding request, one sequence each."""
    requests, replica = fleet.requests, fleet.arrays.replicas[0]
    taken = replica["decode_iteration"] - requests["joined_iteration"]
    return requests["prefill_target_tokens"] + taken


def test_page_tables_of_two_sequences(make_cluster, make_workload):
    """Prompts of 100 and 300 tokens, some tokens into their answers, on pages of 16."""
    workload = make_workload([0.0, 0.0], [100, 300], [1000, 1000])
    fleet = make_fleet(make_cluster(kv_pages=1000), workload, 0.5)
    tokens = kv_tokens(fleet)
    entries = -(-tokens // 16)
    assert tokens[1] - tokens[0] == 200
    assert entries.sum() > 25  # both have grown
    assert pages(fleet, "page_table_entries") == entries.sum()
    assert pages(fleet, "pages_per_sequence") == entries.mean()
    assert pages(fleet, "pages_per_sequence_cv") == pytest.approx(entries.std() / entries.mean())
    assert pages(fleet, "largest_sequence_frac") == entries[1] / 1000
    empty = entries.sum() * 16 - tokens.sum()
    assert pages(fleet, "kv_fragmentation_frac") == pytest.approx(empty / (entries.sum() * 16))
    assert pages(fleet, "shared_page_frac") == 0.0


def test_sequences_of_one_request_share_full_prompt_pages(make_cluster, make_workload):
    """Three answers to a prompt of 40 tokens: 2 full pages for all, the third page thrice."""
    workload = make_workload([0.0], [40], [500], num_sequences=3)
    fleet = make_fleet(make_cluster(kv_pages=1000), workload, 0.3)
    (tokens,) = kv_tokens(fleet)
    own = -(-tokens // 16)
    assert pages(fleet, "page_table_entries") == 3 * own
    held = 2 + 3 * (own - 2)
    assert fleet.arrays.replicas["free_pages"][0] == 1000 - held
    empty = 3 * (own * 16 - tokens)
    assert pages(fleet, "kv_fragmentation_frac") == pytest.approx(empty / (16 * held))


@pytest.mark.parametrize(("page_tokens", "least", "most"), [(16, 0.0, 0.3), (256, 0.75, 0.95)])
def test_short_sequences_on_large_pages_raise_fragmentation(
    make_cluster, make_workload, page_tokens, least, most
):
    """Eight sequences of 20 to 60 tokens each."""
    cluster = make_cluster(kv_blocks=200)
    replicas = tuple(replace(r, page_tokens=page_tokens) for r in cluster.replicas)
    workload = make_workload([0.0] * 8, [20 + 5 * i for i in range(8)], [1000] * 8)
    fleet = make_fleet(replace(cluster, replicas=replicas), workload, 0.08)
    assert least <= pages(fleet, "kv_fragmentation_frac") <= most


def test_full_prefix_cache_lowers_contiguity(make_cluster, make_workload):
    """Twelve prompts of 4 pages each fill 48 of 64 pages with blocks that nobody uses."""
    prompts = [[100 + i] for i in range(12)]
    workload = make_workload(np.arange(12) * 0.5, [65] * 12, [2] * 12, prompts=prompts)
    fleet = SimulatedFleet(make_cluster(kv_blocks=64), workload)
    fleet.reset(seed=0, knobs=FIRST)
    scores = [pages(fleet, "kv_contiguity_frac")]
    for _ in range(12):
        fleet.advance(0.5)
        scores.append(pages(fleet, "kv_contiguity_frac"))
    assert scores == [1.0 - 4 * i / 64 for i in range(13)]
    assert scores[-1] == 0.25
    assert np.isnan(pages(fleet, "kv_fragmentation_frac"))  # nobody runs


def test_pages_of_cached_blocks_are_shared(make_cluster, make_workload):
    """Two requests decode behind the same 64 tokens: 4 of each one's pages are in the cache."""
    workload = make_workload([0.0, 0.5], [80, 80], [1000, 1000], prompts=[[7], [7]])
    fleet = make_fleet(make_cluster(kv_pages=500), workload, 1.0)
    entries = -(-kv_tokens(fleet) // 16)
    assert pages(fleet, "page_table_entries") == entries.sum()
    assert pages(fleet, "shared_page_frac") == pytest.approx(8 / entries.sum())
    held = 500 - fleet.arrays.replicas["free_pages"][0]
    assert held == entries.sum() - 4
    assert pages(fleet, "active_kv_pages") == pytest.approx(held, abs=4)  # of the last scrape


def test_cache_hits_and_their_trend(make_cluster, make_workload):
    """A window of misses, one of hits (64 of 100 tokens), one without prompts."""
    workload = make_workload([0.1, 1.1, 1.5, 3.1], [100] * 4, [2] * 4, prompts=[[1], [1], [1], [2]])
    fleet = SimulatedFleet(make_cluster(), workload)
    fleet.reset(seed=0, knobs=FIRST)
    seen = []
    for _ in range(4):
        fleet.advance(1.0)
        (share,) = fleet.state().feature(Node.FLEET, "cache_hit_frac")
        seen.append((pages(fleet, "cache_hit_frac"), pages(fleet, "cache_hit_trend"), share))
    nan = np.nan
    mean = 0.0 + 0.1 * 0.64
    expected = [(0.0, nan, 0.0), (0.64, 0.64, 0.64), (nan, nan, nan), (0.0, -mean, 0.0)]
    np.testing.assert_allclose(seen, expected, atol=1e-12)
    tenants = fleet.state().feature(Node.TENANT, "prefix_reuse_frac")
    np.testing.assert_array_equal(tenants, [0.0, nan])


def test_memory_of_a_gpu_adds_up(make_cluster, make_workload):
    """Weights of 8.03 B values in 16 bits, a pool of pages of 2 MiB, and what is set aside."""
    cluster = make_cluster(kv_blocks=5000)
    fleet = make_fleet(cluster, make_workload([0.0], [1600], [1000]), 0.5)
    state = fleet.state()
    gib = 2.0**30

    def of_gpu(name: str) -> float:
        return float(state.feature(Node.GPU, name)[0]) * 80 * gib

    assert of_gpu("weights_frac") == pytest.approx(8_030_261_248 * 2)
    assert of_gpu("kv_pool_frac") == pytest.approx(5000 * 2 * 2**20)
    rest = of_gpu("hbm_used_frac") - of_gpu("weights_frac") - of_gpu("kv_pool_frac")
    assert rest == pytest.approx(3.5 * gib)
    used = pages(fleet, "active_kv_pages") * 2 * 2**20
    assert of_gpu("kv_used_frac") == pytest.approx(used)
    assert used > 0
    fleet.stop(0)
    fleet.advance(30.0)
    assert fleet.state().feature(Node.GPU, "hbm_used_frac")[0] == 0.0
