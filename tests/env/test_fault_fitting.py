"""Fits of recorded losses: by hand on small records, and on the shared ones where they are."""

import numpy as np
import pytest
from shared_data import SHARED

from trimtab.env.fault_file import load_faults
from trimtab.env.fault_fitting import fit_server_faults, fit_spot, quantile_mean
from trimtab.env.simulator.faults import FaultConfig, Places, draw_trouble
from trimtab.traces.errors import ConfigError

SERVER_RECORD = SHARED / "traces/infinitehbd_faults/fault_trace.csv.gz"
SPOT_RECORD = SHARED / "traces/skypilot_spot/spot_availability_rle.csv.gz"
needs_servers = pytest.mark.skipif(
    not SERVER_RECORD.exists(), reason=f"no recorded faults at {SERVER_RECORD}"
)
needs_spot = pytest.mark.skipif(not SPOT_RECORD.exists(), reason=f"no spot record at {SPOT_RECORD}")
DAY_S = 86_400.0
# Of the recorded fleet, read off the record by hand: faults a server-year, and hours of repair.
FAULTS_PER_YEAR, REPAIR_MEAN_H, REPAIR_P50_H, REPAIR_P95_H = 1.53, 135.3, 24.4, 739.5


def many_servers(num_servers: int) -> Places:
    """One replica a server."""
    return Places(
        server_of_replica=np.arange(num_servers),
        zone_of_server=np.zeros(num_servers, np.int64),
        gpus_of_replica=np.ones(num_servers, np.int64),
    )


def drawn_losses(config: FaultConfig, days: float, num_servers: int = 400):
    _, records = draw_trouble(config, many_servers(num_servers), days * DAY_S, seed=0)
    starts = np.array([record.at_s for record in records])
    return starts, np.array([record.end_s - record.at_s for record in records])


def real_time(config: FaultConfig) -> FaultConfig:
    return FaultConfig(server_loss=config.server_loss, spot=config.spot)


def test_bundled_fleet_draws_the_recorded_rate_and_repairs():
    """What the profile says it was fitted on comes out of its draws; needs no record."""
    starts, down_s = drawn_losses(real_time(load_faults("fleet")), days=3650.0)
    assert starts.size / (400 * 10.0) == pytest.approx(FAULTS_PER_YEAR, rel=0.05)
    assert down_s.mean() / 3600 == pytest.approx(REPAIR_MEAN_H, rel=0.1)
    assert np.median(down_s) / 3600 == pytest.approx(REPAIR_P50_H, rel=0.1)
    assert np.quantile(down_s, 0.95) / 3600 == pytest.approx(REPAIR_P95_H, rel=0.1)
    counts = np.bincount((starts / DAY_S).astype(int))
    # Recorded: 4.2. Bursts last longer than a day now and then, so draws come out a little lower.
    assert counts.var() / counts.mean() == pytest.approx(4.2, rel=0.25)


def test_bundled_spot_draws_the_recorded_drops_and_availability():
    config = real_time(load_faults("spot"))
    starts, down_s = drawn_losses(config, days=200.0, num_servers=20)
    num_spot = 10
    assert starts.size / (200.0 * num_spot) == pytest.approx(5.7, rel=0.15)
    assert 1.0 - down_s.sum() / (200.0 * DAY_S * num_spot) == pytest.approx(0.58, abs=0.06)
    assert quantile_mean(config.spot.down_quantiles_s) == pytest.approx(down_s.mean(), rel=0.1)


@needs_servers
def test_bundled_fleet_is_the_fit_of_the_record():
    found, loss = fit_server_faults(SERVER_RECORD), load_faults("fleet").server_loss
    assert found.num_faults == 432
    assert loss.per_hour == pytest.approx(found.per_hour, rel=0.01)
    assert loss.burst_frac == pytest.approx(found.burst_frac, rel=0.01)
    assert loss.burst_gap_s == pytest.approx(found.burst_gap_s, rel=0.01)
    np.testing.assert_allclose(loss.down_quantiles_s, found.down_quantiles_s, rtol=0.01)
    assert quantile_mean(found.down_quantiles_s) == pytest.approx(found.mean_down_s, rel=0.01)
    assert found.mean_down_s / 3600 == pytest.approx(REPAIR_MEAN_H, rel=0.01)


@needs_spot
def test_bundled_spot_is_the_fit_of_the_record():
    found, spot = fit_spot(SPOT_RECORD), load_faults("spot").spot
    assert found.num_series == 21
    assert found.drops_per_day == pytest.approx(5.72, abs=0.01)
    np.testing.assert_allclose(spot.up_quantiles_s, found.up_quantiles_s, rtol=0.01)
    np.testing.assert_allclose(spot.down_quantiles_s, found.down_quantiles_s, rtol=0.01)


def test_fit_of_a_record_made_by_hand(tmp_path):
    """Ten servers, a fault on each of 20 days at noon, repaired after 1 or 3 hours by turns."""
    rows = ["event_time_days,node,event_type,class,description"]
    for day in range(20):
        repaired = day + 0.5 + (1 if day % 2 else 3) / 24
        rows += [
            f"{day + 0.5},{day % 10},fault_start,GPU,x",
            f"{repaired},{day % 10},fault_end,GPU,x",
        ]
    rows += ["0.5,99,fault_start,Fan,y", "20.5,99,fault_end,Fan,y"]
    path = tmp_path / "faults.csv"
    path.write_text("\n".join(rows), encoding="utf-8")
    found = fit_server_faults(path, num_servers=10)
    assert found.num_faults == 21
    assert found.per_hour == pytest.approx(21 / (24 * 20.0 * 10))
    assert found.burst_frac == 0.0
    assert found.down_quantiles_s[0] == 3600.0
    assert found.down_quantiles_s[10] == pytest.approx(3 * 3600.0)
    assert found.mean_down_s == pytest.approx(3600 * (10 * 1 + 10 * 3 + 480) / 21)


def test_fit_of_spot_runs_made_by_hand(tmp_path):
    """Up 100 s, down 300 s, forty times; the first and last run are cut and left out."""
    head = "kind,collection,zone,gpus_per_node,target_nodes,gap_s,run_ticks,nodes_up"
    rows = [f"availability,c,z,1,1,100,{1 if tick % 2 else 3},{tick % 2}" for tick in range(80)]
    rows += [f"availability,c,z4,1,4,100,9,{tick % 5}" for tick in range(80)]
    path = tmp_path / "spot.csv"
    path.write_text("\n".join([head, *rows]), encoding="utf-8")
    found = fit_spot(path)
    assert found.num_series == 1
    assert found.days == pytest.approx(80 * 200 / DAY_S)
    assert found.drops_per_day == pytest.approx(39 / found.days)
    np.testing.assert_allclose(found.up_quantiles_s, 100.0, rtol=0.01)
    np.testing.assert_allclose(found.down_quantiles_s, 300.0, rtol=0.01)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "lacks column.s. event_time_days, node"),
        ("", "lacks column"),
        (
            "event_time_days,node,event_type,class,description\n1,2,fault_start,x,y\n",
            "has 1 faults and 0 repairs; need 10",
        ),
    ],
)
def test_records_that_cannot_be_fitted_say_why(tmp_path, text, message):
    path = tmp_path / "faults.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        fit_server_faults(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        fit_spot(tmp_path / "absent.csv")
