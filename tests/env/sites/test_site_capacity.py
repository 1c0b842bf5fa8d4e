from dataclasses import replace
from pathlib import Path

import pytest
from site_makers import make_site

from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.setup import FleetConfig
from trimtab.env.sites import (
    Capacity,
    Site,
    capacity,
    goodput,
    site_capacity,
    site_episode,
    site_rate_rps,
)
from trimtab.env.sites.capacity import cache_directory, search_capacity


def quick(site: Site) -> Capacity:
    return search_capacity(site, site.traffic, None)


@pytest.fixture
def is_rough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search of few and short runs, where only what it depends on matters."""
    monkeypatch.setattr(capacity, "_BISECTIONS", 5)
    monkeypatch.setattr(capacity, "_NUM_WORKLOADS", 1)
    monkeypatch.setattr(capacity, "_MOST_REQUESTS", 2000)
    monkeypatch.setattr(capacity, "_LEAST_SPAN_S", 20.0)


def test_at_capacity_nine_tenths_of_the_light_load_goodput_are_left() -> None:
    site = make_site(load_frac=1.0)
    found = site_capacity(site, site.traffic, None)
    assert found.light_goodput_frac > 0.97
    fresh = FleetConfig(scrape_interval_s=0.02, scrape_drop_frac=0.0)
    shares = {}
    for load_frac in (0.8, 1.0, 1.3):
        at_load = replace(site, load_frac=load_frac)
        total = 0.0
        for number in range(3):
            workload = site_episode(at_load, number, None, span_s=90.0).workload
            fleet = SimulatedFleet(site.cluster, workload, fresh)
            fleet.reset(seed=0, knobs=ANALYTIC_SCORER_KNOBS)
            fleet.drain()
            total += goodput(fleet.requests) / 3
        shares[load_frac] = total
    assert shares[0.8] > 0.93
    # One workload differs from another: capacity is known to a tenth or so.
    assert shares[1.0] > 0.75
    assert shares[1.3] < 0.9 * shares[0.8]


@pytest.mark.usefixtures("is_rough")
def test_capacity_does_not_depend_on_what_a_site_hides() -> None:
    site = make_site()
    hidden = make_site(slowdown_strength=1.0, scrape_interval_s=2.0, load_frac=0.4)
    assert quick(site) == quick(hidden)


@pytest.mark.usefixtures("is_rough")
def test_tighter_limits_and_fewer_pages_carry_no_more() -> None:
    base = quick(make_site()).rate_rps
    assert quick(make_site(ttft_slo_s=(0.4, 1.6), tpot_slo_s=(0.045, 0.09))).rate_rps < base
    assert quick(make_site(kv_frac=0.25)).rate_rps <= 1.1 * base


@pytest.mark.usefixtures("is_rough")
def test_capacity_is_remembered_on_disk() -> None:
    site = make_site()
    first = site_capacity(site, site.traffic, None)
    (file,) = cache_directory().glob("*.json")
    file.write_text('{"rate_rps": 7.0, "light_goodput_frac": 1.0}')
    site_capacity.cache_clear()
    assert site_capacity(site, site.traffic, None).rate_rps == 7.0
    assert site_rate_rps(site, None) == pytest.approx(0.8 * 7.0)
    file.write_text('{"rate')
    site_capacity.cache_clear()
    assert site_capacity(site, site.traffic, None) == first


@pytest.mark.usefixtures("is_rough")
def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = tmp_path / "file"
    blocker.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocker))
    site = make_site()
    assert site_capacity(site, site.traffic, None) == quick(site)
