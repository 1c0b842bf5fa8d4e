from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from site_makers import make_site

from trimtab.env.belief import Belief
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, Knobs
from trimtab.env.simulator.faults.script import Drill
from trimtab.env.simulator.layout import FAILED, FINISHED, SHED
from trimtab.env.sites import (
    Capacity,
    Episode,
    RegimeKind,
    Site,
    Split,
    episode,
    episode_regimes,
    goodput,
    site_episode,
    site_fleet,
    site_workload,
)
from trimtab.env.sites.regime import CHANGING

ROUND_ROBIN = Knobs.of(round_robin_weight=1.0)


@pytest.fixture(autouse=True)
def _known_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Capacity(rate_rps=20.0, light_goodput_frac=1.0)
    monkeypatch.setattr(episode, "site_capacity", lambda *_: known)


def changing(*kinds: RegimeKind, span_s: float = 300.0, number: int = 0) -> Episode:
    return site_episode(make_site(regimes=kinds or CHANGING), number, None, span_s=span_s)


def played(one: Episode, knobs: Knobs = ANALYTIC_SCORER_KNOBS) -> np.ndarray:
    fleet = one.fleet()
    fleet.reset(seed=1, knobs=knobs)
    fleet.drain()
    return fleet.requests


@pytest.mark.parametrize("regimes", [(), CHANGING])
def test_the_same_number_is_the_same_episode(regimes: tuple[RegimeKind, ...]) -> None:
    site = make_site(regimes=regimes)
    first, again, other = (site_episode(site, n, None, span_s=200.0) for n in (0, 0, 1))
    assert first.regimes == again.regimes
    assert first.config == again.config
    assert first.workload.requests.tobytes() == again.workload.requests.tobytes()
    assert first.workload.requests.tobytes() != other.workload.requests.tobytes()
    assert site_workload(site, 0, None, span_s=200.0).name == "train/0/0"


def test_splits_draw_other_episodes() -> None:
    episodes = [site_episode(make_site(split=split), 0, None) for split in Split]
    first_s = [one.workload.requests["arrival_s"][0] for one in episodes]
    assert len(set(first_s)) == len(first_s)


def test_a_steady_episode_is_one_regime_at_the_sites_load() -> None:
    one = site_episode(make_site(load_frac=0.5), 0, None)
    (regime,) = one.regimes
    assert regime.kind is RegimeKind.STEADY
    assert (regime.start_s, regime.end_s) == (0.0, one.span_s)
    assert one.workload.requests.size == pytest.approx(0.5 * 20.0 * one.span_s)
    assert set(one.workload.requests["weight"]) == {1.0, 2.0}
    urgent = one.workload.requests["query"]["priority"] == 0
    assert set(one.workload.requests["weight"][urgent]) == {2.0}


@pytest.mark.parametrize("span_s", [100.0, 480.0, 2000.0])
def test_regimes_cover_an_episode_without_gaps(span_s: float) -> None:
    regimes = episode_regimes(make_site(regimes=CHANGING), 3, span_s=span_s)
    assert regimes[0].start_s == 0.0
    assert regimes[-1].end_s == pytest.approx(span_s, abs=180.0)
    assert regimes[-1].end_s >= span_s
    for before, after in pairwise(regimes):
        assert before.end_s == after.start_s
        assert before.kind is not after.kind
        assert before.span_s >= 60.0
    assert max(regime.span_s for regime in regimes) <= 210.0
    if span_s == 2000.0:
        assert {regime.kind for regime in regimes} == set(CHANGING)


def test_every_moment_knows_its_regime() -> None:
    one = changing(span_s=480.0)
    for place, regime in enumerate(one.regimes):
        moments_s = np.array([regime.start_s, 0.5 * (regime.start_s + regime.end_s)])
        assert one.regime_at(moments_s).tolist() == [place, place]
    assert one.regime_at(np.array([1e9])).tolist() == [len(one.regimes) - 1]


def test_each_regime_has_its_load() -> None:
    one = changing(span_s=900.0)
    places = one.regime_at(one.workload.requests["arrival_s"])
    for place, regime in enumerate(one.regimes):
        count = int((places == place).sum())
        assert count == pytest.approx(20.0 * regime.load_frac * regime.span_s, rel=0.02)
    loads = {regime.kind: regime.load_frac for regime in one.regimes}
    assert loads[RegimeKind.OVERLOAD] == pytest.approx(1.25)
    assert loads[RegimeKind.USUAL] == pytest.approx(0.8)


def test_a_failure_takes_a_quarter_of_the_replicas_and_gives_them_back() -> None:
    one = changing(RegimeKind.FAILURE, span_s=100.0)
    start_s = one.regimes[0].start_s
    crash, restart = one.config.script
    assert (crash.drill, restart.drill) == (Drill.CRASH, Drill.RESTART)
    assert crash.replica == restart.replica
    assert start_s <= crash.at_s <= start_s + 15.0
    assert 40.0 <= restart.at_s - crash.at_s <= 60.0
    assert crash.replica not in {span.replica for span in one.config.slow_spans}
    fleet = one.fleet()
    fleet.reset(seed=0, knobs=ROUND_ROBIN)
    fleet.run_until(crash.at_s + 5.0)
    assert fleet.arrays.replicas["is_up"].tolist().count(0) == 1
    fleet.run_until(restart.at_s + 5.0)
    assert (fleet.arrays.replicas["is_up"] == 1).all()


def test_a_mix_is_mostly_urgent_and_tighter() -> None:
    usual = changing(RegimeKind.USUAL, span_s=100.0).workload.requests
    mix = changing(RegimeKind.SLO_MIX, span_s=100.0).workload.requests
    share = {name: (each["query"]["priority"] == 0).mean() for name, each in
             (("usual", usual), ("mix", mix))}  # fmt: skip
    assert share["mix"] > 0.75 > 0.6 > share["usual"]
    assert mix["query"]["ttft_slo_s"].min() == pytest.approx(0.75 * 0.8)
    assert usual["query"]["ttft_slo_s"].min() == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("kind", "input_tokens"), [(RegimeKind.LONG_PROMPTS, 2000.0), (RegimeKind.BURSTS, 1500.0)]
)
def test_regimes_of_other_traffic_have_its_lengths(kind: RegimeKind, input_tokens: float) -> None:
    requests = changing(kind, span_s=100.0).workload.requests
    assert requests["query"]["input_tokens"].mean() > 0.7 * input_tokens
    if kind is RegimeKind.BURSTS:
        assert requests["output_tokens"].mean() < 60.0


def test_all_that_arrives_ends() -> None:
    one = changing(span_s=480.0)
    requests = played(one)
    assert requests.size == one.workload.requests.size
    assert np.isin(requests["status"], (FINISHED, SHED, FAILED)).all()


def test_goodput_by_regime_adds_up() -> None:
    one = changing(span_s=480.0)
    requests = played(one)
    kinds = np.array([regime.kind for regime in one.regimes])[one.regime_at(requests["arrival_s"])]
    by_regime = one.goodput_by_regime(requests)
    total = sum(by_regime[kind] * requests["weight"][kinds == kind].sum() for kind in by_regime)
    assert total / requests["weight"].sum() == pytest.approx(goodput(requests))
    assert set(by_regime) == {regime.kind for regime in one.regimes}


def test_goodput_counts_weights_and_refusals() -> None:
    requests = played(site_episode(make_site(), 0, None, span_s=30.0))[:3].copy()
    requests["weight"] = (2.0, 1.0, 1.0)
    requests["status"] = (FINISHED, FINISHED, SHED)
    requests["first_token_s"] = requests["arrival_s"] + 0.1
    requests["finish_s"] = requests["first_token_s"] + 0.001
    assert goodput(requests) == pytest.approx(0.75)
    assert goodput(requests[:0]) == 0.0


def test_trouble_costs_goodput() -> None:
    def share(site: Site) -> float:
        return goodput(played(site_episode(site, 0, None, span_s=60.0), ROUND_ROBIN))

    clean = make_site()
    assert share(replace(clean, slowdown_strength=1.0)) < share(clean)
    wrong = (Belief(gpu="L40S-48G", compute_factor=0.7, memory_factor=0.7),)
    assert share(replace(clean, beliefs=wrong)) == pytest.approx(share(clean), abs=0.01)


def test_a_fleet_of_a_site_is_ready_to_play() -> None:
    site = make_site(scrape_interval_s=0.7)
    fleet = site_fleet(site, 0, None, span_s=30.0)
    fleet.reset(seed=0, knobs=ANALYTIC_SCORER_KNOBS)
    outcome = fleet.advance(2.0)
    fleet.drain()
    assert outcome.num_arrived > 0
    assert fleet.config.scrape_interval_s == 0.7
    assert fleet.cluster == site.cluster


@pytest.mark.parametrize("span_s", [0.0, -1.0, np.inf, np.nan])
def test_a_span_must_be_above_0(span_s: float) -> None:
    with pytest.raises(ValueError, match="span_s must be above 0 and finite"):
        site_episode(make_site(), 0, None, span_s=span_s)
