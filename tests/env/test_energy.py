"""Power by load, caps and bills, against answers computed by hand."""

import numpy as np
import pytest

from trimtab.env.cluster import kv_pages
from trimtab.env.energy import batch_power_frac, cap_fault, clock_frac, clocked_w, power_range
from trimtab.env.energy_prices import EnergyConfig, Tariff
from trimtab.env.hardware import GPUS
from trimtab.env.knobs import Knobs
from trimtab.env.simulated_fleet import SimulatedFleet, run_workload
from trimtab.env.simulator.layout import FINISHED
from trimtab.env.simulator.setup import FleetConfig

FIRST = Knobs.of(round_robin_weight=1.0)
H100 = GPUS["H100-80G"]
HOUR_S = 3600.0


def make_fleet(cluster, workload, **config) -> SimulatedFleet:
    fleet = SimulatedFleet(cluster, workload, FleetConfig(**config))
    fleet.reset(seed=0, knobs=FIRST)
    return fleet


def test_decode_power_of_h100_is_what_was_measured():
    power = power_range(H100)
    assert power.idle_w == 75 + 275
    assert power.decode_low_w - 275 == pytest.approx(300.0)
    assert power.decode_high_w - 275 == pytest.approx(600.0)
    assert power.prefill_w == 700 + 275
    fracs = batch_power_frac(np.array([0.0, 1.0, 2**4.2, 128.0, 1000.0]))
    # Half way at 4.2 octaves, but for the ends that the logistic never reaches.
    assert fracs == pytest.approx([0.0, 0.0, 0.5229, 1.0, 1.0], abs=1e-4)


@pytest.mark.parametrize("name", sorted(GPUS))
def test_no_gpu_draws_less_with_more_to_do(name):
    power = power_range(GPUS[name], 2)
    assert power.idle_w <= power.decode_low_w <= power.decode_high_w <= power.prefill_w
    assert power.idle_w == pytest.approx(2 * power_range(GPUS[name]).idle_w)


def test_idle_replica_draws_idle_power(make_cluster, make_workload):
    fleet = make_fleet(make_cluster(), make_workload([50.0], [10], [1]))
    fleet.advance(10.0)
    kpis = fleet.kpis
    assert fleet.arrays.replicas["energy_j"][0] == pytest.approx(10.0 * 350.0)
    assert fleet.arrays.replicas["idle_j"][0] == pytest.approx(10.0 * 350.0)
    fleet.drain()
    assert kpis().idle_kwh == pytest.approx(50.0 * 350.0 / 3.6e6, rel=1e-3)


@pytest.mark.parametrize("batch", [1, 16, 128])
def test_decode_power_grows_with_the_batch(make_cluster, make_workload, batch):
    fleet = make_fleet(make_cluster(), make_workload([0.0] * batch, [16] * batch, [3000] * batch))
    fleet.advance(3.0)
    replica = fleet.arrays.replicas[0]
    assert replica["num_decoding"] == batch
    energy_j = replica["energy_j"]
    fleet.advance(5.0)
    frac = float(batch_power_frac(np.array([float(batch)]))[0])
    watts = (fleet.arrays.replicas[0]["energy_j"] - energy_j) / 5.0
    assert watts == pytest.approx(275.0 + 300.0 + 300.0 * frac, rel=0.01)


def test_parts_of_the_energy_add_up(make_cluster, make_random_workload):
    kpis = run_workload(make_cluster(), make_random_workload(200, rate_rps=5, seed=0), FIRST).kpis()
    parts = (kpis.idle_kwh, kpis.prefill_kwh, kpis.decode_kwh)
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(kpis.energy_kwh)


def test_cube_law_of_the_clock_gives_the_measured_prefill_of_a_capped_h100():
    """Measured: an H100 at half its power prefills 1.30 times slower (splitwise-sim)."""
    clock = clock_frac(75.0, 700.0, 350.0)
    assert 1.0 / clock == pytest.approx(1.30, abs=0.02)
    assert clocked_w(75.0, 700.0, clock) == pytest.approx(350.0)
    assert clock_frac(75.0, 300.0, 350.0) == 1.0
    assert clock_frac(75.0, 700.0, 75.0) == 0.15


def test_capped_replica_prefills_slower_and_draws_its_cap(make_cluster, make_workload):
    """A prompt of full chunks: compute-bound, so its time grows by nearly 1 / clock."""
    cluster = make_cluster(max_batch_tokens=8192)
    workload = make_workload([1.0], [8192], [1])
    free, capped = (make_fleet(cluster, workload) for _ in range(2))
    capped.set_power_cap(0, 350.0)
    times_s, powers_w = [], []
    for fleet in (free, capped):
        fleet.advance(20.0)
        request, replica = fleet.requests[0], fleet.arrays.replicas[0]
        times_s.append(request["first_token_s"] - 1.0)
        powers_w.append(replica["prefill_j"] / times_s[-1] - 275.0)
    assert powers_w == pytest.approx([700.0, 350.0])
    assert 1.2 < times_s[1] / times_s[0] < 1.32


def test_cap_saves_decode_energy_and_hardly_slows_it(make_cluster, make_workload):
    workload = make_workload([0.0] * 8, [16] * 8, [1000] * 8)
    free, capped = (make_fleet(make_cluster(), workload) for _ in range(2))
    capped.set_power_cap(0, 250.0)
    for fleet in (free, capped):
        fleet.drain()
        assert (fleet.requests["status"] == FINISHED).all()
    slower = capped.requests["finish_s"].max() / free.requests["finish_s"].max()
    assert 1.0 <= slower < 1.02
    energy_j = [
        fleet.arrays.replicas["energy_j"][0] - fleet.arrays.replicas["idle_j"][0]
        for fleet in (free, capped)
    ]
    # GPU alone: 300 + 300 x 0.2335 W free against 250 W.
    hosts_j = 275.0 * free.requests["finish_s"].max()
    saved = 1.0 - (energy_j[1] - slower * hosts_j) / (energy_j[0] - hosts_j)
    assert saved == pytest.approx(1.0 - 250.0 / 370.1, abs=0.02)


def test_scheduler_sees_that_a_capped_replica_is_slow(make_cluster, make_workload):
    arrivals = np.arange(60) * 0.5
    workload = make_workload(arrivals, [4000] * 60, [4] * 60)
    fleet = make_fleet(make_cluster(("H100-80G",) * 2), workload)
    fleet.set_power_cap(0, 200.0)
    fleet.advance(25.0)
    ratios = fleet.arrays.views["iteration_log_ratio"]
    # Demand is at most 700 W, so the clock is at least (125 / 625)^(1/3): log 1.71 at the most, and
    # less by what the clock does not slow.
    assert 0.2 < ratios[0] < np.log(1.71)
    assert ratios[1] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("watts", [120.0, 250.0, 400.0])
def test_jump_is_exact_under_a_cap(make_cluster, make_random_workload, watts):
    workload = make_random_workload(200, rate_rps=6.0, seed=1, mean_output_tokens=200.0)
    cluster = make_cluster(("H100-80G", "L40S-48G"), kv_pages=300)
    runs = []
    for is_single_step in (False, True):
        fleet = make_fleet(cluster, workload, is_single_step=is_single_step)
        fleet.set_power_cap(0, watts)
        fleet.advance(10.0)
        fleet.set_power_cap(0, None)
        fleet.set_power_cap(1, 100.0)
        fleet.drain()
        runs.append(fleet)
    for name in ("first_token_s", "finish_s"):
        np.testing.assert_allclose(
            runs[0].requests[name], runs[1].requests[name], rtol=0, atol=1e-9
        )
    for name in ("energy_j", "nominal_s", "cost_usd"):
        np.testing.assert_allclose(
            runs[0].arrays.replicas[name], runs[1].arrays.replicas[name], rtol=1e-9
        )


@pytest.mark.parametrize("watts", [75.0, 701.0, -1.0])
def test_cap_outside_of_the_board_is_refused(make_cluster, make_workload, watts):
    fleet = make_fleet(make_cluster(), make_workload([1.0], [10], [1]))
    text = rf"power_cap_w: must be above the idle power \(75 W\) .* \(700 W\) .* got {watts:g}"
    with pytest.raises(ValueError, match=text):
        fleet.set_power_cap(0, watts)
    with pytest.raises(ValueError, match=r"replica must be in \[0, 0\], got 1"):
        fleet.set_power_cap(1, 300.0)
    assert cap_fault(H100, 700.0) is None


def test_cap_of_a_cluster_holds_from_the_start(make_cluster, make_workload):
    cluster = make_cluster(max_batch_tokens=8192, power_cap_w=350.0)
    assert kv_pages(cluster, cluster.replicas[0]) > 0
    fleet = make_fleet(cluster, make_workload([0.0], [8192], [1]))
    fleet.advance(5.0)
    request, replica = fleet.requests[0], fleet.arrays.replicas[0]
    assert replica["prefill_j"] / request["first_token_s"] == pytest.approx(350.0 + 275.0)


def stepping(*prices: float, step_s: float = HOUR_S, carbon: float = 500.0) -> EnergyConfig:
    tariff = Tariff(
        name="made", price_usd_per_mwh=prices, carbon_g_per_kwh=(carbon,) * len(prices),
        step_s=step_s,
    )  # fmt: skip
    return EnergyConfig(tariff=tariff)


def test_bill_of_a_price_step_in_the_middle_of_a_run(make_cluster, make_workload):
    """350 W for 20 s: 10 s at 100 USD/MWh, 10 s at 400; carbon at 500 g/kWh throughout."""
    energy = stepping(100.0, 400.0, step_s=10.0)
    fleet = make_fleet(make_cluster(), make_workload([20.0], [10], [1]), energy=energy)
    fleet.drain()
    kpis = fleet.kpis()
    kwh_a_step = 350.0 * 10.0 / 3.6e6
    assert kpis.cost_usd == pytest.approx(kwh_a_step * (0.1 + 0.4), rel=1e-6)
    assert kpis.carbon_kg == pytest.approx(2 * kwh_a_step * 0.5, rel=1e-6)


def test_bill_does_not_depend_on_how_a_run_is_cut(make_cluster, make_random_workload):
    workload = make_random_workload(100, rate_rps=5.0, seed=0)
    energy = stepping(100.0, -50.0, 300.0, step_s=3.0)
    whole = make_fleet(make_cluster(), workload, energy=energy)
    cut = make_fleet(make_cluster(), workload, energy=energy)
    whole.drain()
    while cut.now_s < workload.span_s:
        cut.advance(0.7)
    cut.drain()
    assert cut.kpis().cost_usd == pytest.approx(whole.kpis().cost_usd, rel=1e-9)
    assert cut.branch().kpis() == cut.kpis()


def test_each_zone_pays_its_own_tariff(make_cluster, make_workload):
    """Replicas of the second kind stand on a second server, here in the same zone z0."""
    cluster = make_cluster()
    dear = stepping(1000.0, carbon=0.0).tariff
    energy = EnergyConfig(tariff=stepping(10.0).tariff, tariff_by_zone={"z0": dear})
    fleet = make_fleet(cluster, make_workload([36.0], [10], [1]), energy=energy)
    fleet.drain()
    assert fleet.kpis().cost_usd == pytest.approx(350.0 * 36.0 / 3.6e9 * 1000.0, rel=1e-6)
    assert fleet.kpis().carbon_kg == 0.0


def test_run_begins_where_in_the_tariff_it_is_told_to(make_cluster, make_workload):
    tariff = Tariff(name="made", price_usd_per_mwh=(10.0, 1000.0), carbon_g_per_kwh=(0.0, 0.0))
    energy = EnergyConfig(tariff=tariff, start_s=HOUR_S - 10.0)
    fleet = make_fleet(make_cluster(), make_workload([20.0], [10], [1]), energy=energy)
    fleet.drain()
    assert fleet.kpis().cost_usd == pytest.approx(350.0 * 10.0 / 3.6e9 * 1010.0, rel=1e-6)
