"""Drawn trouble: rates, lengths and who is hit, against what the settings say."""

from itertools import pairwise

import numpy as np
import pytest

from trimtab.env.cluster import ClusterSpec, ReplicaSpec, ServerSpec
from trimtab.env.simulator.faults import (
    FaultConfig,
    Places,
    draw_link_events,
    draw_slowdowns,
    draw_trouble,
    places_of,
)
from trimtab.env.simulator.faults.config import (
    Drift,
    KvFailures,
    Links,
    Metrics,
    Outages,
    Spot,
    Stalls,
)
from trimtab.env.simulator.faults.processes import (
    draw_bursts,
    draw_quantiles,
    merged,
    multiply_steps,
    product_steps,
    wander,
)
from trimtab.env.simulator.layout import (
    CRASH,
    DIE,
    KV_LOSS,
    LINK,
    NOTICE,
    PAGE_FROZEN,
    RESTART,
    STALL,
)

# Two zones of two servers of two replicas; the last replica has two GPUs.
PLACES = Places(
    server_of_replica=np.repeat(np.arange(4), 2),
    zone_of_server=np.array([0, 0, 1, 1]),
    gpus_of_replica=np.array([1, 1, 1, 1, 1, 1, 1, 2]),
)
DAY_S = 86_400.0


def down_spans(events: np.ndarray, replica: int) -> list[tuple[float, float]]:
    own = events[(events["target"] == replica) & np.isin(events["kind"], (CRASH, RESTART))]
    np.testing.assert_array_equal(own["kind"], np.tile([CRASH, RESTART], own.size // 2))
    return list(zip(own["at_s"][::2].tolist(), own["at_s"][1::2].tolist(), strict=True))


def test_places_of_a_cluster():
    servers = tuple(
        ServerSpec(name=f"s{i}", zone=zone, gpu="H100-80G", num_gpus=4)
        for i, zone in enumerate(("east", "west", "east"))
    )
    replicas = tuple(
        ReplicaSpec(name=f"r{i}", server=server, model="llama-3-8b", gpu_indices=gpus)
        for i, (server, gpus) in enumerate([("s2", (0,)), ("s0", (0, 1)), ("s1", (3,))])
    )
    places = places_of(ClusterSpec(name="made", servers=servers, replicas=replicas))
    assert places.server_of_replica.tolist() == [2, 0, 1]
    assert places.zone_of_server.tolist() == [0, 1, 0]
    assert places.gpus_of_replica.tolist() == [1, 2, 1]


@pytest.mark.parametrize(
    ("config", "hit"),
    [
        (FaultConfig(gpu_loss=Outages(per_hour=0.1)), [(r,) for r in range(8)]),
        (FaultConfig(server_loss=Outages(per_hour=0.1)), [(0, 1), (2, 3), (4, 5), (6, 7)]),
        (FaultConfig(zone_loss=Outages(per_hour=0.1)), [(0, 1, 2, 3), (4, 5, 6, 7)]),
        (FaultConfig(spot=Spot(server_frac=0.5)), [(0, 1), (2, 3), (4, 5), (6, 7)]),
        (
            FaultConfig(spot=Spot(server_frac=1.0, is_zone_wide=True)),
            [(0, 1, 2, 3), (4, 5, 6, 7)],
        ),
    ],
)
def test_a_loss_takes_all_that_stands_on_the_thing_at_once(config, hit):
    events, records = draw_trouble(config, PLACES, 30 * DAY_S, seed=0)
    assert len(records) > 30
    assert {record.replicas for record in records} <= set(hit)
    assert len({record.replicas for record in records}) >= 2
    for record in records:
        for replica in record.replicas:
            spans = down_spans(events, replica)
            assert any(a <= record.at_s and record.end_s <= b for a, b in spans)


def test_losses_come_at_their_rate_and_last_as_their_quantiles_say():
    loss = Outages(per_hour=0.05, down_quantiles_s=(100.0, 1000.0))
    _, records = draw_trouble(FaultConfig(gpu_loss=loss), PLACES, 100 * DAY_S, seed=1)
    # 9 GPUs x 2,400 h x 0.05 an hour
    assert len(records) == pytest.approx(1080, rel=0.1)
    spans_s = np.array([record.end_s - record.at_s for record in records])
    assert np.median(spans_s) == pytest.approx(np.sqrt(100.0 * 1000.0), rel=0.1)
    assert spans_s.min() >= 100.0
    assert spans_s.max() <= 1000.0
    # The replica of two GPUs is hit twice as often.
    hits = np.bincount([record.replicas[0] for record in records], minlength=8)
    assert hits[7] == pytest.approx(2 * hits[:7].mean(), rel=0.25)


def test_acceleration_keeps_the_share_of_time_down():
    loss = Outages(per_hour=0.01, down_quantiles_s=(3600.0, 7200.0))
    shares, counts = [], []
    for speed in (1.0, 50.0):
        config = FaultConfig(gpu_loss=loss, acceleration=speed)
        _, records = draw_trouble(config, PLACES, 200 * DAY_S / speed, seed=2)
        down_s = sum(record.end_s - record.at_s for record in records)
        shares.append(down_s / (200 * DAY_S / speed))
        counts.append(len(records))
    assert counts[0] == pytest.approx(counts[1], rel=0.2)
    assert shares[0] == pytest.approx(shares[1], rel=0.2)


def test_bursts_raise_the_dispersion_and_not_the_rate():
    rng = np.random.default_rng(0)
    rate_per_s, horizon_s, dispersion = 10.0 / DAY_S, 2000 * DAY_S, []
    for frac in (0.0, 0.6):
        moments = draw_bursts(rng, rate_per_s, horizon_s, frac=frac, gap_s=60.0)
        counts = np.bincount((moments / DAY_S).astype(int), minlength=2000)
        assert counts.mean() == pytest.approx(10.0, rel=0.05)
        assert (np.diff(moments) >= 0).all()
        dispersion.append(counts.var() / counts.mean())
    # (1 + p) / (1 - p)
    assert dispersion == pytest.approx([1.0, 4.0], rel=0.15)


def test_down_times_of_a_replica_never_overlap_whatever_takes_it_down():
    config = FaultConfig(
        crashes_per_hour=20.0,
        gpu_loss=Outages(per_hour=10.0),
        server_loss=Outages(per_hour=5.0),
        zone_loss=Outages(per_hour=1.0),
        spot=Spot(server_frac=1.0, up_quantiles_s=(200.0, 900.0), down_quantiles_s=(60.0, 300.0)),
        metrics=Metrics(detection_delay_s=3.0),
    )
    events, records = draw_trouble(config, PLACES, DAY_S, seed=0)
    assert (np.diff(events["at_s"]) >= 0).all()
    for replica in range(8):
        spans = down_spans(events, replica)
        assert all(a < b < c for (a, b), (c, _) in pairwise(spans))
        own = events[events["target"] == replica]
        deaths = own["at_s"][own["kind"] == DIE]
        crashes = own["at_s"][own["kind"] == CRASH]
        assert 0 < deaths.size < crashes.size
        # Each death is noticed within the delay, before anything else goes wrong.
        noticed_s = crashes[np.searchsorted(crashes, deaths)] - deaths
        assert ((noticed_s > 0) & (noticed_s <= 3.0 + 1e-9)).all()
    assert {record.kind for record in records} == {
        "crash", "gpu_loss", "server_loss", "zone_loss", "spot_reclaim",
    }  # fmt: skip


def test_spot_warns_before_it_reclaims():
    spot = Spot(server_frac=0.5, up_quantiles_s=(600.0, 6000.0), notice_s=120.0)
    events, records = draw_trouble(FaultConfig(spot=spot), PLACES, 5 * DAY_S, seed=0)
    assert {record.replicas for record in records} < {(0, 1), (2, 3), (4, 5), (6, 7)}
    assert len({record.replicas for record in records}) == 2
    for record in records:
        for replica in record.replicas:
            own = events[(events["target"] == replica) & (events["kind"] == NOTICE)]["at_s"]
            assert np.isclose(own, max(0.0, record.at_s - 120.0)).any()
    assert (events["value"][events["kind"] == CRASH] == 1.0).all()


def test_wandering_factor_stays_at_least_one_and_has_its_spread_and_memory():
    drift = Drift(sigma_log=0.3, relax_s=60.0, step_s=5.0)
    table = draw_slowdowns(FaultConfig(drift=drift), np.array([0, 0, 1]), 4 * DAY_S, seed=0)
    assert (table["factor"] >= 1.0).all()
    row = table[0][np.isfinite(table["at_s"][0])]
    assert (np.diff(row["at_s"]) > 0).all()
    assert np.allclose(row["at_s"] % 5.0, 0.0)
    values = wander(np.random.default_rng(0), 0.3, relax_s=60.0, step_s=5.0, horizon_s=4 * DAY_S)
    assert values.std() == pytest.approx(0.3, rel=0.05)
    # Correlation falls to 1/e in `relax_s`.
    assert np.corrcoef(values[:-12], values[12:])[0, 1] == pytest.approx(np.exp(-1.0), abs=0.05)


def test_wandering_of_a_server_is_shared_by_its_replicas():
    drift = Drift(server_sigma_log=0.3)
    table = draw_slowdowns(FaultConfig(drift=drift), np.array([0, 0, 1]), 3600.0, seed=0)
    np.testing.assert_array_equal(table[0], table[1])
    assert not np.array_equal(table[0], table[2])


def test_only_replicas_of_several_gpus_suffer_from_their_nvlink():
    links = Links(nvlink_degradations_per_hour=20.0, nvlink_slowdown_factor=(2.0, 2.0))
    table = draw_slowdowns(
        FaultConfig(links=links), PLACES.server_of_replica, DAY_S, 0, PLACES.gpus_of_replica
    )
    assert np.isinf(table["at_s"][:7]).all()
    assert (table["factor"][7] == 2.0).sum() > 50


def test_link_events_say_what_is_left_of_the_bandwidth():
    links = Links(degradations_per_hour=5.0, bandwidth_factor=(0.5, 0.5), span_s=(100.0, 100.0))
    events = draw_link_events(FaultConfig(links=links), 3, DAY_S, seed=0)
    assert (events["kind"] == LINK).all()
    assert set(np.round(events["value"], 6)) <= {1.0, 0.5, 0.25, 0.125, 0.0625}
    for link in range(3):
        own = events[events["target"] == link]
        assert (own["value"] == 0.5).sum() == pytest.approx(120, rel=0.4)
        assert own["value"][-1] == 1.0
    assert draw_link_events(FaultConfig(), 3, DAY_S, seed=0).size == 0


@pytest.mark.parametrize(
    ("config", "kind", "per_hour"),
    [
        (FaultConfig(stalls=Stalls(per_hour=2.0)), STALL, 2.0),
        (FaultConfig(kv_failures=KvFailures(per_hour=1.0)), KV_LOSS, 2.0),
        (FaultConfig(metrics=Metrics(freezes_per_hour=1.0)), PAGE_FROZEN, 2.0),
    ],
)
def test_trouble_of_single_replicas_comes_at_its_rate(config, kind, per_hour):
    events, records = draw_trouble(config, PLACES, 10 * DAY_S, seed=0)
    assert (events["kind"] == kind).all()
    assert events.size == pytest.approx(per_hour * 240 * 8, rel=0.1)
    assert len(records) > 1500
    assert (events["value"] >= 0).all()


def test_one_kind_leaves_the_draws_of_another_as_they_are():
    alone = FaultConfig(crashes_per_hour=5.0, replica_slowdowns_per_hour=5.0)
    more = FaultConfig(
        crashes_per_hour=5.0,
        replica_slowdowns_per_hour=5.0,
        stalls=Stalls(per_hour=10.0),
        spot=Spot(server_frac=0.25),
    )
    kinds = ("crash", "slowdown")
    lists = [
        [r for r in draw_trouble(config, PLACES, DAY_S, seed=4)[1] if r.kind in kinds]
        for config in (alone, more)
    ]
    assert lists[0] == lists[1] != []
    assert draw_trouble(alone, PLACES, DAY_S, seed=5)[1] != lists[0]
    assert draw_trouble(FaultConfig(), PLACES, DAY_S, seed=4) == (pytest.approx(np.zeros(0)), [])


def test_steps_multiply_where_they_overlap():
    one, other = [(1.0, 2.0), (3.0, 1.0)], [(2.0, 3.0), (4.0, 1.0)]
    assert multiply_steps([one, other]) == [(1.0, 2.0), (2.0, 6.0), (3.0, 3.0), (4.0, 1.0)]
    assert multiply_steps([one, []]) == one
    assert multiply_steps([]) == product_steps([]) == []


def test_union_of_spans():
    assert merged([(5, 6), (1, 3), (2, 4), (4, 4.5)]) == [(1, 4.5), (5, 6)]


def test_draws_from_quantiles_have_those_quantiles():
    quantiles = (1.0, 2.0, 8.0, 9.0, 100.0)
    drawn = draw_quantiles(np.random.default_rng(0), quantiles, 100_000)
    found = np.quantile(drawn, [0.0, 0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(found, quantiles, rtol=0.02)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Drift(sigma_log=-0.1), "sigma_log must be at least 0, got -0.1"),
        (lambda: Drift(step_s=0.0), "step_s must be above 0, got 0.0"),
        (lambda: Links(bandwidth_factor=(0.5, 1.5)), r"bandwidth_factor .* \(0.5, 1.5\)"),
        (lambda: Outages(burst_frac=1.0), r"burst_frac must be in \[0, 1\), got 1.0"),
        (lambda: Outages(down_quantiles_s=(5.0, 2.0)), "down_quantiles_s .* rising values above 0"),
        (lambda: Spot(server_frac=1.5), r"server_frac must be in \[0, 1\], got 1.5"),
        (lambda: Stalls(span_s=(2.0, 1.0)), r"span_s must be a range .* got \(2.0, 1.0\)"),
        (lambda: KvFailures(pages_frac=(0.0, 0.5)), r"pages_frac .* in \(0, 1\]"),
        (lambda: Metrics(queue_lie_factor=(-1.0, 0.5)), "queue_lie_factor .* of at least 0"),
        (lambda: FaultConfig(acceleration=0.0), "acceleration must be above 0, got 0.0"),
    ],
)
def test_groups_name_key_and_value(make, text):
    with pytest.raises(ValueError, match=text):
        make()
