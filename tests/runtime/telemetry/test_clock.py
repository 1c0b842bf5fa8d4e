"""The true offset lies within the bound, whatever the delays; contradictions are counted."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.runtime.telemetry import subjects
from trimtab.runtime.telemetry.clock import ClockEstimator
from trimtab.runtime.telemetry.frames import Ping, Pong, decode, encode
from trimtab.runtime.telemetry.transport import InProcessTransport, Transport

PPM = 1e-6
US = 1e-6
MS = 1e-3
Delay = Callable[[np.random.Generator], float]


@dataclass
class RemoteClock:
    """A probe's clock: an offset and a drift at `start_s`, and a drift that wanders as a wave."""

    offset_s: float
    drift: float
    start_s: float = 0.0
    wave_drift: float = 0.0
    wave_period_s: float = 60.0

    def offset_at(self, hub_s: float) -> float:
        span_s = hub_s - self.start_s
        phase = 2 * np.pi / self.wave_period_s
        wave_s = self.wave_drift / phase * (1 - np.cos(phase * span_s))
        return self.offset_s + self.drift * span_s + float(wave_s)

    def read(self, hub_s: float) -> float:
        return hub_s + self.offset_at(hub_s)


def exchange(
    estimator: ClockEstimator,
    clock: RemoteClock,
    at_s: float,
    *,
    out_s: float = 100 * US,
    think_s: float = 20 * US,
    back_s: float = 100 * US,
    probe: int = 0,
) -> bool:
    """One round trip that begins at a moment and takes so long on each way."""
    came_s, left_s = at_s + out_s, at_s + out_s + think_s
    return estimator.exchange(probe, at_s, clock.read(came_s), clock.read(left_s), left_s + back_s)


def loopback(rng: np.random.Generator) -> float:
    """Delay on one machine: tens of microseconds, and now and then the scheduler's turn."""
    return float(
        rng.exponential(40 * US) + 20 * US + (rng.random() < 0.05) * rng.exponential(5 * MS)
    )


def asymmetric(rng: np.random.Generator) -> float:
    """Delay of a way that is always long, and often longer."""
    return float(20 * MS + rng.exponential(10 * MS))


@settings(max_examples=60)
@given(
    offset_s=st.floats(-0.5, 0.5) | st.floats(-2e9, 2e9),
    drift_ppm=st.floats(-100, 100),
    wave_ppm=st.sampled_from([0.0, 0.9]),
    period_s=st.sampled_from([0.1, 1.0, 5.0]),
    start_s=st.sampled_from([0.0, 1.7e9]),
    ways=st.tuples(*[st.sampled_from([loopback, asymmetric])] * 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_true_offset_is_within_the_bound(
    offset_s: float,
    drift_ppm: float,
    wave_ppm: float,
    period_s: float,
    start_s: float,
    ways: tuple[Delay, Delay],
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    clock = RemoteClock(offset_s, drift_ppm * PPM, start_s, wave_drift=wave_ppm * PPM)
    estimator = ClockEstimator(1)
    at_s = start_s
    for _ in range(60):
        at_s += period_s * (0.5 + rng.random())
        out_s, back_s, think_s = ways[0](rng), ways[1](rng), float(rng.exponential(50 * US))
        assert exchange(estimator, clock, at_s, out_s=out_s, back_s=back_s, think_s=think_s)
        at_s += out_s + think_s + back_s
        for moment_s in (at_s, at_s + 0.3 * period_s, at_s - 0.2, at_s + 30.0):
            error_s = abs(estimator.offset_s(moment_s)[0] - clock.offset_at(moment_s))
            assert error_s <= estimator.error_bound_s(moment_s)[0]
    assert abs(estimator.drift[0] - clock.drift) <= estimator.drift_bound[0] + 1 * PPM
    assert estimator.num_contradictions[0] == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_fleet_is_recovered_within_a_millisecond_by_its_own_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_probes = 16
    clocks = [
        RemoteClock(float(rng.uniform(-0.5, 0.5)), float(rng.uniform(-100, 100)) * PPM)
        for _ in range(num_probes)
    ]
    estimator = ClockEstimator(num_probes)
    for second in range(20):
        for probe, clock in enumerate(clocks):
            exchange(
                estimator, clock, second + probe * MS, out_s=loopback(rng), back_s=loopback(rng),
                probe=probe,
            )  # fmt: skip
    now_s = 20.5
    true_s = np.array([clock.offset_at(now_s) for clock in clocks])
    bound_s = estimator.error_bound_s(now_s)
    assert bound_s.max() < 0.2 * MS
    assert np.all(np.abs(estimator.offset_s(now_s) - true_s) <= bound_s)
    assert estimator.drift_bound.max() < 20 * PPM


def test_a_longer_way_back_stays_inside_the_bound() -> None:
    """Half the round trip would be off by 5 ms; that is what the bound says, and no less."""
    estimator, clock = ClockEstimator(1), RemoteClock(0.25, 0.0)
    for second in range(10):
        exchange(estimator, clock, second, out_s=0.0, think_s=0.0, back_s=10 * MS)
    error_s = abs(estimator.offset_s(9.1)[0] - 0.25)
    assert error_s == pytest.approx(5 * MS, rel=0.02)
    assert error_s <= estimator.error_bound_s(9.1)[0] < 5.2 * MS


def test_one_quick_answer_outweighs_many_slow_ones() -> None:
    estimator, clock = ClockEstimator(1), RemoteClock(0.25, 50 * PPM)
    exchange(estimator, clock, 0.0, out_s=50 * US, back_s=50 * US)
    for tenth in range(1, 20):
        exchange(estimator, clock, 0.1 * tenth, out_s=2 * MS, back_s=30 * MS)
    assert estimator.error_bound_s(2.0)[0] < 1.1 * MS


def test_the_bound_grows_with_silence() -> None:
    estimator, clock = ClockEstimator(1), RemoteClock(0.0, 0.0)
    exchange(estimator, clock, 0.0)
    # from one exchange nothing is known of the drift but that it is at most 500 ppm
    np.testing.assert_allclose(estimator.error_bound_s(10.0), 5 * MS + 0.1 * MS, rtol=0.01)
    assert estimator.error_bound_s(20.0)[0] > estimator.error_bound_s(10.0)[0]
    assert estimator.round_trip_s[0] == pytest.approx(200 * US)


def test_probes_that_never_answered_are_unknown() -> None:
    estimator = ClockEstimator(2)
    exchange(estimator, RemoteClock(3.0, 0.0), 0.0, probe=1)
    assert estimator.is_known.tolist() == [False, True]
    assert np.isnan(estimator.offset_s(1.0)).tolist() == [True, False]
    assert np.isinf(estimator.error_bound_s(1.0)).tolist() == [True, False]
    assert np.isnan(estimator.to_hub_time([0, 1, 1], [4.0, 4.0, 5.0])).tolist() == [
        True,
        False,
        False,
    ]
    estimator.forget(1)
    assert not estimator.is_known.any()


@pytest.mark.parametrize("offset_s", [0.5, -1.7e9])
def test_moments_are_converted_back(offset_s: float) -> None:
    estimator, clock = ClockEstimator(1), RemoteClock(offset_s, 100 * PPM, start_s=1.7e9)
    for second in range(30):
        exchange(estimator, clock, 1.7e9 + second)
    hub_s = 1.7e9 + np.linspace(20, 40, 50)
    remote_s = np.array([clock.read(moment_s) for moment_s in hub_s])
    back_s = estimator.to_hub_time(np.zeros(50, int), remote_s)
    bounds_s = np.array([estimator.error_bound_s(moment_s)[0] for moment_s in hub_s])
    assert np.all(np.abs(back_s - hub_s) <= bounds_s * 1.001)
    assert bounds_s.max() < 0.4 * MS


@pytest.mark.parametrize("step_s", [0.05, -0.05, 3600.0])
def test_a_stepped_clock_is_found_reset_and_counted_once(step_s: float) -> None:
    estimator, clock = ClockEstimator(1), RemoteClock(0.1, 20 * PPM)
    for second in range(10):
        assert exchange(estimator, clock, second)
    clock.offset_s += step_s
    assert not exchange(estimator, clock, 10.0)
    for second in range(11, 20):
        assert exchange(estimator, clock, second)
    assert estimator.num_contradictions[0] == 1
    assert not estimator.is_unreliable[0]
    error_s = abs(estimator.offset_s(20.0)[0] - clock.offset_at(20.0))
    assert error_s <= estimator.error_bound_s(20.0)[0] < 1 * MS


def test_a_clock_that_is_slewed_is_found_within_seconds() -> None:
    """300 ppm at once is no crystal's wander: it is seen when it exceeds the bound."""
    estimator, clock = ClockEstimator(1), RemoteClock(0.1, 20 * PPM)
    for second in range(20):
        assert exchange(estimator, clock, second)
    clock = RemoteClock(clock.offset_at(20.0), 320 * PPM, start_s=20.0)
    for second in range(20, 30):
        exchange(estimator, clock, second)
    assert 1 <= estimator.num_contradictions[0] <= 2
    error_s = abs(estimator.offset_s(30.0)[0] - clock.offset_at(30.0))
    assert error_s <= estimator.error_bound_s(30.0)[0] < 1 * MS


def test_bounds_stay_narrow_and_true_for_an_hour() -> None:
    rng = np.random.default_rng(3)
    estimator = ClockEstimator(1)
    clock = RemoteClock(-1.7e9, 60 * PPM, 1.7e9, wave_drift=15 * PPM, wave_period_s=1000.0)
    for second in range(0, 3600, 2):
        at_s = 1.7e9 + second
        assert exchange(estimator, clock, at_s, out_s=loopback(rng), back_s=loopback(rng))
        error_s = abs(estimator.offset_s(at_s + 1.0)[0] - clock.offset_at(at_s + 1.0))
        assert error_s <= estimator.error_bound_s(at_s + 1.0)[0]
        if second >= 30:
            assert estimator.error_bound_s(at_s + 1.0)[0] < 0.2 * MS


def test_a_clock_faster_than_any_hardware_is_a_contradiction() -> None:
    estimator, clock = ClockEstimator(1), RemoteClock(0.0, 2000 * PPM)
    assert exchange(estimator, clock, 0.0)
    assert not exchange(estimator, clock, 1.0)


def test_a_probe_that_lies_becomes_unreliable_and_can_recover() -> None:
    rng = np.random.default_rng(1)
    estimator, clock = ClockEstimator(2), RemoteClock(0.1, 0.0)
    for second in range(5):
        liar = RemoteClock(0.1 + float(rng.uniform(-1, 1)), 0.0)
        exchange(estimator, liar, second, probe=0)
        exchange(estimator, clock, second, probe=1)
    assert estimator.is_unreliable.tolist() == [True, False]
    assert estimator.num_contradictions.tolist() == [4, 0]
    for second in range(5, 20):
        exchange(estimator, clock, second, probe=0)
    assert not estimator.is_unreliable.any()


@pytest.mark.parametrize(
    "moments_s",
    [
        (10.0, 10.5, 10.6, 9.0),  # received before it was sent
        (10.0, 10.6, 10.5, 10.1),  # answered before it came
        (10.0, 10.5, 11.5, 10.1),  # took a second to answer, and we waited a tenth
        (np.nan, 10.5, 10.6, 11.0),
        (10.0, np.nan, 10.6, 11.0),
        (10.0, np.inf, np.inf, 11.0),
        (10.0, 10.5, 10.6, np.inf),
        (-1e300, 1e300, 1e300, 1e300),
    ],
)
def test_an_impossible_exchange_changes_nothing_but_the_count(
    moments_s: tuple[float, float, float, float],
) -> None:
    estimator, clock = ClockEstimator(1), RemoteClock(0.1, 0.0)
    exchange(estimator, clock, 0.0)
    before = estimator.offset_s(5.0), estimator.error_bound_s(5.0)
    assert not estimator.exchange(0, *moments_s)
    assert (estimator.offset_s(5.0), estimator.error_bound_s(5.0)) == before
    assert estimator.num_contradictions[0] == 1


def test_answers_may_overtake_each_other() -> None:
    estimator, clock = ClockEstimator(1), RemoteClock(0.1, 80 * PPM)
    for second in range(10):
        assert exchange(estimator, clock, second + 0.1)
        assert exchange(estimator, clock, second, back_s=0.05)  # came before the one above
    error_s = abs(estimator.offset_s(10.0)[0] - clock.offset_at(10.0))
    assert error_s <= estimator.error_bound_s(10.0)[0] < 1 * MS


def test_a_drift_beyond_reason_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_drift must be in \[0, 0.1\), got 0.5"):
        ClockEstimator(1, max_drift=0.5)


async def answer_pings(transport: Transport, clock: RemoteClock, ready: asyncio.Event) -> None:
    inbox = await transport.subscribe(subjects.ping("p"), 10)
    ready.set()
    while await inbox.wait():
        received_s = clock.read(time.perf_counter())
        for body in inbox.take():
            ping = decode(body)
            assert isinstance(ping, Ping)
            pong = Pong(
                probe="p",
                nonce=ping.nonce,
                ping_sent_at_s=ping.sent_at_s,
                received_at_s=received_s,
                sent_at_s=clock.read(time.perf_counter()),
            )
            await transport.publish(subjects.pong("r"), encode(pong))


async def measure(ours: Transport, theirs: Transport, clock: RemoteClock) -> ClockEstimator:
    """Real round trips, ten milliseconds apart: twenty, and more until one was quick."""
    estimator, ready = ClockEstimator(1), asyncio.Event()
    inbox = await ours.subscribe(subjects.pong("r"), 10)
    probe = asyncio.create_task(answer_pings(theirs, clock, ready))
    await ready.wait()
    nonce = 0
    while nonce < 20 or (
        nonce < 2000 and estimator.error_bound_s(time.perf_counter())[0] >= 0.5 * MS
    ):
        nonce += 1
        ping = Ping(probe="p", nonce=nonce, sent_at_s=time.perf_counter())
        await ours.publish(subjects.ping("p"), encode(ping))
        assert await inbox.wait(60)
        received_s = time.perf_counter()
        [body] = inbox.take()
        pong = decode(body)
        assert isinstance(pong, Pong)
        assert estimator.exchange(
            0, pong.ping_sent_at_s, pong.received_at_s, pong.sent_at_s, received_s
        )
        await asyncio.sleep(0.01)
    probe.cancel()
    return estimator


def assert_recovered(estimator: ClockEstimator, clock: RemoteClock) -> None:
    now_s = time.perf_counter()
    error_s = abs(estimator.offset_s(now_s)[0] - clock.offset_at(now_s))
    assert error_s <= estimator.error_bound_s(now_s)[0] < 1 * MS


SKEWED = [(0.5, 100 * PPM), (-0.5, -100 * PPM), (-1.7e9, 30 * PPM)]


@pytest.mark.parametrize(("offset_s", "drift"), SKEWED)
def test_a_skewed_clock_is_recovered_in_process(offset_s: float, drift: float) -> None:
    clock = RemoteClock(offset_s, drift, start_s=time.perf_counter())

    async def main() -> None:
        transport = InProcessTransport()
        assert_recovered(await measure(transport, transport, clock), clock)

    asyncio.run(main())


@pytest.mark.parametrize(("offset_s", "drift"), SKEWED)
def test_a_skewed_clock_is_recovered_over_nats(offset_s: float, drift: float) -> None:
    from trimtab.runtime.telemetry.nats_server import NatsServer, find_nats_server

    if find_nats_server() is None:
        pytest.skip("needs nats-server: pip install 'trimtab[cluster]'")
    from trimtab.runtime.telemetry.nats_transport import NatsTransport

    clock = RemoteClock(offset_s, drift, start_s=time.perf_counter())

    async def main() -> None:
        with NatsServer() as server:
            ours = await NatsTransport.connect(server.url)
            theirs = await NatsTransport.connect(server.url)
            try:
                assert_recovered(await measure(ours, theirs, clock), clock)
            finally:
                await ours.close()
                await theirs.close()

    asyncio.run(main())
