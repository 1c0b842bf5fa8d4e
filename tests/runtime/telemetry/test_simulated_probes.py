"""A simulated fleet: what it sends, what goes wrong on purpose, and that both are as it says."""

from collections import Counter

import numpy as np
import pytest

from trimtab.runtime.telemetry.frames import (
    FrameError,
    Hello,
    Ping,
    Pong,
    Sample,
    decode,
    encode,
)
from trimtab.runtime.telemetry.reasons import Reason
from trimtab.runtime.telemetry.signals import (
    SIGNALS_BY_SCOPE,
    Kind,
    Scope,
    num_values,
    signal_index,
    signals_hash,
)
from trimtab.runtime.telemetry.simulated.clocks import ClockShape
from trimtab.runtime.telemetry.simulated.faults import NO_FAULTS, FaultRates
from trimtab.runtime.telemetry.simulated.layout import SimulatedLayout
from trimtab.runtime.telemetry.simulated.levels import LEVELS
from trimtab.runtime.telemetry.simulated.load import LoadShape, SimulatedLoad
from trimtab.runtime.telemetry.simulated_probes import FleetShape, SimulatedProbes

SMALL = SimulatedLayout(num_servers=6, servers_per_rack=4)
FAULTLESS = FleetShape(faults=NO_FAULTS)
ONE_KIND = {
    "lost_frac": Reason.LOST,
    "duplicated_frac": Reason.DUPLICATE,
    "delayed_frac": Reason.OUT_OF_ORDER,
    "torn_frac": Reason.MALFORMED,
    "other_schema_frac": Reason.WRONG_SCHEMA,
    "infinite_frac": Reason.NOT_FINITE,
    "impossible_frac": Reason.OUT_OF_RANGE,
}


def only(**rates: float) -> FleetShape:
    named = {name: 0 for name in FaultRates.__dataclass_fields__} | rates
    return FleetShape(faults=FaultRates(**named))


def run(probes: SimulatedProbes, until_s: float, calm_s: float = 1.0) -> list[Sample]:
    """Return the samples that arrive, in order; faults stop a while before the end."""
    bodies = [d.body for d in probes.advance(until_s - calm_s)]
    probes.calm()
    bodies += [d.body for d in probes.advance(until_s)]
    samples = []
    for body in bodies:
        try:
            frame = decode(body)
        except FrameError:
            continue
        if isinstance(frame, Sample):
            samples.append(frame)
    return samples


def values_of(sample: Sample, scope: Scope) -> np.ndarray:
    return np.frombuffer(sample.blocks[scope], "<f4").reshape(-1, len(SIGNALS_BY_SCOPE[scope]))


def test_512_servers_have_more_than_200_thousand_signals() -> None:
    assert 512 * num_values(num_gpus=8, num_replicas=2) >= 200_000


def test_every_signal_has_a_level() -> None:
    for scope, signals in SIGNALS_BY_SCOPE.items():
        assert set(LEVELS[scope]) == {signal.name for signal in signals}


def test_same_seed_same_frames_and_another_seed_others() -> None:
    one, same, other = (SimulatedProbes(SMALL, seed=seed).advance(2.0) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_time_may_pass_in_any_steps() -> None:
    at_once, in_steps = SimulatedProbes(SMALL, seed=3), SimulatedProbes(SMALL, seed=3)
    small = [d for k in range(1, 201) for d in in_steps.advance(0.01 * k)]
    assert at_once.advance(2.0) == small


def test_hello_comes_before_a_probes_first_sample() -> None:
    deliveries = SimulatedProbes(SMALL, FAULTLESS).advance(0.5)
    greeted = set()
    for delivery in deliveries:
        frame = decode(delivery.body)
        if isinstance(frame, Hello):
            assert frame.signals_hash == signals_hash()
            assert (len(frame.gpus), len(frame.replicas)) == (8, 2)
            assert delivery.subject == f"trimtab.hello.{frame.rack}"
            greeted.add(frame.probe)
        else:
            assert isinstance(frame, Sample)
            assert frame.probe in greeted
    assert len(greeted) == SMALL.num_servers
    assert {d.rack for d in deliveries} == {"rack-000", "rack-001"}


def test_values_keep_to_their_ranges_and_counters_grow() -> None:
    samples = [s for s in run(SimulatedProbes(SMALL, FAULTLESS), 30.0) if s.probe == "server-0000"]
    assert len(samples) == pytest.approx(300, abs=2)
    for scope, signals in SIGNALS_BY_SCOPE.items():
        blocks = np.stack([values_of(sample, scope) for sample in samples])
        assert np.isfinite(blocks).all()
        low = np.array([signal.low for signal in signals], np.float32)
        high = np.array([signal.high for signal in signals], np.float32)
        assert (blocks >= low).all()
        assert (blocks <= high).all()
        counters = [i for i, signal in enumerate(signals) if signal.kind is Kind.COUNTER]
        falls = (np.diff(blocks[..., counters], axis=0) < 0).sum(axis=0)
        assert falls.max() <= 2  # folded once or twice in 30 s at most


def test_energy_grows_as_fast_as_power_says() -> None:
    samples = [s for s in run(SimulatedProbes(SMALL, FAULTLESS), 10.0) if s.probe == "server-0001"]
    gpus = np.stack([values_of(sample, Scope.GPU)[0] for sample in samples])
    joules = gpus[:, signal_index(Scope.GPU, "energy_joules")]
    watts = gpus[:, signal_index(Scope.GPU, "power_watts")].mean()
    assert (joules[-1] - joules[0]) / 9.9 == pytest.approx(watts, rel=0.1)


def test_pages_are_read_once_a_period_and_say_how_old_they_are() -> None:
    samples = [s for s in run(SimulatedProbes(SMALL, FAULTLESS), 5.0) if s.probe == "server-0002"]
    pages = np.stack([values_of(sample, Scope.REPLICA)[0] for sample in samples])
    ages_s = pages[:, signal_index(Scope.REPLICA, "page_age_s")]
    tokens = pages[:, signal_index(Scope.REPLICA, "output_tokens")]
    assert ages_s.min() >= 0.0
    assert ages_s.max() < 1.0
    is_new = np.diff(tokens) > 0
    np.testing.assert_array_equal(is_new, np.diff(ages_s) < 0)
    assert 4 <= is_new.sum() <= 5


def test_load_swings_through_the_day_and_bursts() -> None:
    shape = LoadShape(day_s=100.0, bursts_per_hour=0.0, steps_per_hour=0.0)
    load = SimulatedLoad((50, 2), np.random.default_rng(0), shape)
    means = [load.at(float(t), 1.0).mean() for t in range(100)]
    assert max(means) - min(means) == pytest.approx(0.45, abs=0.1)
    bursting = SimulatedLoad(
        (50, 2), np.random.default_rng(0), LoadShape(bursts_per_hour=3600.0, steps_per_hour=0.0)
    )
    for t in range(20):
        burst = bursting.at(float(t), 1.0).mean()
    assert burst > load.at(0.0, 1.0).mean() + 0.1


@pytest.mark.parametrize(("rate", "reason"), ONE_KIND.items(), ids=list(ONE_KIND))
def test_one_kind_of_fault_is_injected_and_counted(rate: str, reason: Reason) -> None:
    probes = SimulatedProbes(SMALL, only(**{rate: 0.05}), seed=5)
    samples = run(probes, 20.0)
    number = probes.injected[reason]
    assert number == probes.injected.total
    assert 20 <= number <= 120
    seen = Counter((s.probe, s.sequence) for s in samples)
    gaps = sum(
        max(q for p, q in seen if p == probe) + 1 - sum(1 for p, _ in seen if p == probe)
        for probe in {p for p, _ in seen}
    )
    assert gaps == (number if rate == "lost_frac" else 0)
    assert sum(n - 1 for n in seen.values()) == (number if rate == "duplicated_frac" else 0)
    last: dict[str, int] = {}
    backwards = 0
    for sample in samples:
        backwards += sample.sequence < last.get(sample.probe, -1)
        last[sample.probe] = max(sample.sequence, last.get(sample.probe, -1))
    assert backwards == (number if rate == "delayed_frac" else 0)
    infinite = sum(int(np.isinf(values_of(s, Scope.GPU)).sum()) for s in samples)
    assert infinite == (number if rate == "infinite_frac" else 0)


def test_broken_frames_are_refused_for_the_reason_that_is_counted() -> None:
    probes = SimulatedProbes(SMALL, only(torn_frac=0.05, other_schema_frac=0.05), seed=5)
    refused: Counter[Reason] = Counter()
    for delivery in probes.advance(10.0):
        try:
            decode(delivery.body)
        except FrameError as error:
            refused[error.reason] += 1
    for reason in (Reason.MALFORMED, Reason.WRONG_SCHEMA):
        assert 0 < refused[reason] <= probes.injected[reason]
        assert refused[reason] >= probes.injected[reason] - 2  # those still on the way


def test_a_restart_begins_a_new_epoch_with_counters_at_zero() -> None:
    probes = SimulatedProbes(SMALL, only(restarted_frac=0.02), seed=2)
    epochs: dict[str, int] = {}
    num_restarts = 0
    for delivery in probes.advance(20.0):
        frame = decode(delivery.body)
        if isinstance(frame, Hello):
            assert frame.epoch >= epochs.get(frame.probe, 1)
        if isinstance(frame, Sample) and frame.epoch > epochs.setdefault(frame.probe, 1):
            num_restarts += 1
            epochs[frame.probe] = frame.epoch
            assert frame.sequence == 0
            joules = values_of(frame, Scope.GPU)[0, signal_index(Scope.GPU, "energy_joules")]
            assert joules < 100.0  # of one period
    assert num_restarts > 3


def test_a_frozen_probe_says_the_same_for_ever() -> None:
    probes = SimulatedProbes(SMALL, only(num_frozen=1), seed=1)
    told: dict[str, set[bytes]] = {}
    for sample in run(probes, 2.0):
        told.setdefault(sample.probe, set()).add(sample.blocks[Scope.GPU])
    liar = SMALL.server_name(int(np.flatnonzero(probes.is_frozen)[0]))
    assert {probe for probe, blocks in told.items() if len(blocks) == 1} == {liar}


def test_clocks_are_off_and_drift_and_pongs_tell_of_it() -> None:
    clocks = ClockShape(max_offset_s=0.5, max_drift=1e-4)
    probes = SimulatedProbes(SMALL, FleetShape(faults=NO_FAULTS, clocks=clocks), seed=4)
    for s in range(SMALL.num_servers):
        name = SMALL.server_name(s)
        ping = encode(Ping(probe=name, nonce=7, sent_at_s=99.0))
        body = probes.pong(ping, 100.0)
        assert body is not None
        pong = decode(body)
        assert isinstance(pong, Pong)
        assert pong.nonce == 7
        expected_s = probes.clocks.offsets_s[s] + 100.0 * probes.clocks.drifts[s]
        assert pong.received_at_s - 100.0 == pytest.approx(expected_s, abs=1e-9)
        assert abs(expected_s) <= 0.51
    assert np.ptp(probes.clocks.offsets_s) > 0.2


def test_a_ping_is_answered_over_the_network() -> None:
    probes = SimulatedProbes(SMALL, FAULTLESS)
    probes.advance(1.0)
    ping = encode(Ping(probe="server-0005", nonce=1, sent_at_s=1.0))
    probes.answer("server-0005", ping, 1.0)
    (delivery,) = [d for d in probes.advance(1.05) if d.subject == "trimtab.pong.rack-001"]
    assert 1.0005 < delivery.arrives_at_s < 1.05


def test_a_false_clock_jumps_about() -> None:
    probes = SimulatedProbes(SMALL, only(num_false_clocks=1))
    liar = SMALL.server_name(int(np.flatnonzero(probes.has_false_clock)[0]))
    shown_s = []
    for nonce in range(5):
        body = probes.pong(encode(Ping(probe=liar, nonce=nonce, sent_at_s=0.0)), 10.0)
        assert body is not None
        pong = decode(body)
        assert isinstance(pong, Pong)
        shown_s.append(pong.received_at_s)
    assert np.ptp(shown_s) > 1.0


def test_what_is_no_ping_is_refused() -> None:
    probes = SimulatedProbes(SMALL, FAULTLESS)
    pong = Pong(probe="server-0000", nonce=1, ping_sent_at_s=0, received_at_s=0, sent_at_s=0)
    with pytest.raises(ValueError, match="ping must be a ping, got a pong"):
        probes.pong(encode(pong), 0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SimulatedLayout(num_servers=0), "num_servers must be at least 1, got 0"),
        (
            lambda: SimulatedLayout(num_gpus=8, num_replicas=3),
            r"multiple of num_replicas \(3\), got 8",
        ),
        (lambda: FaultRates(lost_frac=-0.1), "lost_frac must be a share or a count, got -0.1"),
        (lambda: FaultRates(lost_frac=0.7, torn_frac=0.7), "add up to at most 1, got 1.4"),
        (lambda: FleetShape(period_s=0), "period_s must be above 0, got 0"),
    ],
)
def test_what_cannot_be_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
