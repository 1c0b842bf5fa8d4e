from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from trimtab.env.cluster import kv_pages
from trimtab.env.sites import Shape, Site, Split, TraceLibrary, sample_site
from trimtab.env.sites.regime import CHANGING
from trimtab.env.sites.sampling import other_traffic
from trimtab.env.sites.split import site_rng
from trimtab.env.sites.traffic import SYNTHETIC

NUM_SITES = 200


@pytest.fixture(scope="module")
def sites() -> list[Site]:
    return [sample_site(Split.TRAIN, number, None) for number in range(NUM_SITES)]


def test_the_same_number_is_the_same_site(sites: list[Site]) -> None:
    assert [sample_site(Split.TRAIN, number, None) for number in range(20)] == sites[:20]


def test_no_two_sites_are_alike_within_a_split_or_between_splits(sites: list[Site]) -> None:
    others = [sample_site(split, n, None) for split in list(Split)[1:] for n in range(50)]
    drawn = [(one.scrape_interval_s, one.load_frac) for one in (*sites, *others)]
    assert len(set(drawn)) == len(drawn)


def test_random_numbers_of_splits_sites_and_paths_are_unrelated() -> None:
    paths = ((), (0,), (0, 0), (1, 1), (2, 1), (3,))
    keys = [(split, number, *path) for split in Split for number in (0, 1) for path in paths]
    first = [float(site_rng(*key).random()) for key in keys]
    assert len(set(first)) == len(keys)


def test_sites_stay_within_their_bounds(sites: list[Site]) -> None:
    for site in sites:
        assert 4 <= site.num_replicas <= 32
        assert 1 <= len(site.pools) <= 3
        assert len({pool.gpu for pool in site.pools}) == len(site.pools)
        assert site.kv_frac in (0.5, 1.0)
        assert site.urgent_frac in (0.2, 0.5, 0.8)
        assert site.slowdown_strength in (0.0, 0.5, 1.0)
        assert 0.05 <= site.scrape_interval_s <= 2.0
        assert 0.4 <= site.load_frac <= 1.1
        assert site.ttft_slo_s[1] == pytest.approx(4 * site.ttft_slo_s[0])
        assert site.tpot_slo_s[1] == pytest.approx(2 * site.tpot_slo_s[0])
        assert 0.05 < site.ttft_slo_s[0] < 10.0
        assert 0.005 < site.tpot_slo_s[0] < 0.5
        for belief in site.beliefs:
            assert 0.7 <= belief.compute_factor <= 1.4
            assert 0.7 <= belief.memory_factor <= 1.4


def test_the_distribution_is_as_described(sites: list[Site]) -> None:
    sizes = np.array([site.num_replicas for site in sites])
    # Log-uniform: as many between 4 and 11 as between 12 and 32.
    assert 0.35 < (sizes <= 11).mean() < 0.65
    assert 0.15 < np.mean([not site.beliefs for site in sites]) < 0.35
    assert 0.4 < np.mean([site.is_changing for site in sites]) < 0.6
    shapes = Counter(site.traffic.shape for site in sites)
    assert set(shapes) == set(Shape)
    assert min(shapes.values()) > NUM_SITES // 10
    assert len({site.model for site in sites}) == 5
    assert {len(site.pools) for site in sites} == {1, 2, 3}


def test_every_replica_has_room_for_prompts(sites: list[Site]) -> None:
    for site in sites[:40]:
        cluster = site.cluster
        assert len(cluster.replicas) == site.num_replicas
        for replica in cluster.replicas:
            tokens = kv_pages(cluster, replica) * replica.page_tokens
            assert tokens >= 20_000
            assert site.max_prompt_tokens <= tokens / 4
        assert 4096 <= site.max_prompt_tokens <= 32_768


def test_half_of_the_kv_is_half_of_the_pages() -> None:
    half = next(
        site
        for site in (sample_site(Split.TRAIN, n, None) for n in range(50))
        if site.kv_frac == 0.5
    )
    whole = sample_site(half.split, half.number, None)
    object.__setattr__(whole, "kv_frac", 1.0)
    for few, all_ in zip(half.cluster.replicas, whole.cluster.replicas, strict=True):
        assert kv_pages(half.cluster, few) == kv_pages(whole.cluster, all_) // 2


def test_regimes_can_be_asked_for_without_other_changes() -> None:
    steady = sample_site(Split.TEST, 4, None, is_changing=False)
    changing = sample_site(Split.TEST, 4, None, is_changing=True)
    assert steady.regimes == ()
    assert changing.regimes == CHANGING
    assert (steady.cluster, steady.traffic) == (changing.cluster, changing.traffic)
    assert (steady.ttft_slo_s, steady.beliefs) == (changing.ttft_slo_s, changing.beliefs)


def test_without_traces_all_is_synthetic(sites: list[Site]) -> None:
    assert {site.traffic.recording for site in sites} == {SYNTHETIC}


def test_recordings_change_nothing_but_where_traffic_comes_from(tmp_path: Path) -> None:
    (tmp_path / "azure_llm_2023").mkdir()
    (tmp_path / "azure_llm_2023" / "AzureLLMInferenceTrace_conv.csv.gz").touch()
    library = TraceLibrary(tmp_path)
    for number in range(30):
        bare, site = (sample_site(Split.TRAIN, number, each) for each in (None, library))
        is_conversation = site.traffic.shape is Shape.CONVERSATION
        assert site.traffic.recording == ("azure-conv" if is_conversation else SYNTHETIC)
        assert (bare.cluster, bare.load_frac) == (site.cluster, site.load_frac)


def test_other_traffic_is_the_sites_own_where_it_has_that_shape(sites: list[Site]) -> None:
    site = sites[0]
    assert other_traffic(site, site.traffic.shape, None) is site.traffic
    bursts = other_traffic(site, Shape.CODE_BURSTS, None)
    assert bursts.shape is Shape.CODE_BURSTS
    assert bursts == other_traffic(site, Shape.CODE_BURSTS, None)


def test_a_number_below_0_is_refused() -> None:
    with pytest.raises(ValueError, match="must be at least 0, got -1"):
        sample_site(Split.TRAIN, -1, None)
