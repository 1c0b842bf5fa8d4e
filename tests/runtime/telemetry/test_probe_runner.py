"""The runner: what it sends, when, and that nothing holds it up."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from trimtab.runtime.telemetry import subjects
from trimtab.runtime.telemetry.frames import Hello, Ping, Pong, Sample, decode, encode
from trimtab.runtime.telemetry.probes.probe import Members, Readings, put
from trimtab.runtime.telemetry.probes.recorded import RecordedProbe
from trimtab.runtime.telemetry.probes.runner import Place, ProbeRunner, Timing, as_blocks
from trimtab.runtime.telemetry.signals import SIGNALS_BY_SCOPE, Scope, signal_index, signals_hash
from trimtab.runtime.telemetry.transport import Inbox, InProcessTransport

PLACE = Place(probe="p0", server="s0", rack="r0")
MEMBERS = Members(gpus=("a", "b"), replicas=("m",))


class CountingProbe:
    """Reads its own number of samples as the load of the server; may block or fail."""

    def __init__(self, act: Callable[[int], None] = lambda _i: None) -> None:
        self.members = MEMBERS
        self.num_samples = 0
        self._act = act

    def sample(self) -> Readings:
        self.num_samples += 1
        self._act(self.num_samples)
        readings = self.members.absent()
        put(readings, Scope.SERVER, "load_1min", self.num_samples)
        put(readings, Scope.SERVER, "cpu_busy_s", 1e9 + self.num_samples)
        return readings

    def close(self) -> None:
        pass


class FakeTime:
    """A clock that sleeping moves on, and nothing else; samples in flight finish first."""

    def __init__(self, until_s: float) -> None:
        self.now_s = 0.0
        self.until_s = until_s
        self.runner: ProbeRunner | None = None

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, span_s: float) -> None:
        for _ in range(10_000):
            await asyncio.sleep(0)
            sampling = self.runner and self.runner._sampling
            if not sampling or sampling.done():
                break
            await asyncio.sleep(0.001)
        self.now_s += span_s
        if self.now_s >= self.until_s and self.runner:
            self.runner.stop()


def run_fake(probe: object, until_s: float, **timing: float) -> tuple[ProbeRunner, list[bytes]]:
    """Run in fake time; return the runner and all frames of its rack."""

    async def main() -> tuple[ProbeRunner, list[bytes]]:
        transport = InProcessTransport()
        inbox = await transport.subscribe("trimtab.*.r0", 10_000)
        fake = FakeTime(until_s)
        runner = ProbeRunner(
            probe,  # type: ignore[arg-type]
            PLACE,
            transport,
            timing=Timing(clock=fake, sleep=fake.sleep, **timing),
            epoch=7,
        )
        fake.runner = runner
        await runner.run()
        return runner, inbox.take()

    return asyncio.run(main())


def of_kind(bodies: list[bytes], kind: type) -> list[Any]:
    return [frame for frame in map(decode, bodies) if isinstance(frame, kind)]


def block(sample: Sample, scope: Scope) -> np.ndarray:
    return np.frombuffer(sample.blocks[scope], "<f4").reshape(-1, len(SIGNALS_BY_SCOPE[scope]))


def test_a_runner_says_hello_and_then_sends_samples_in_sequence() -> None:
    runner, bodies = run_fake(CountingProbe(), until_s=2.05)
    assert isinstance(decode(bodies[0]), Hello)
    hello = of_kind(bodies, Hello)[0]
    assert (hello.probe, hello.server, hello.rack, hello.epoch) == ("p0", "s0", "r0", 7)
    assert (hello.gpus, hello.replicas) == (["a", "b"], ["m"])
    assert hello.signals_hash == signals_hash()
    samples = of_kind(bodies, Sample)
    assert [sample.sequence for sample in samples] == [*range(runner.num_sent)]
    assert 20 <= len(samples) <= 21
    assert np.diff([s.sampled_at_s for s in samples]) == pytest.approx(0.1)
    assert {sample.epoch for sample in samples} == {7}


def test_blocks_hold_32_bit_floats_with_folded_counters_and_nan_where_absent() -> None:
    _, bodies = run_fake(CountingProbe(), until_s=0.35)
    samples = of_kind(bodies, Sample)
    assert {scope: block(samples[0], scope).shape[0] for scope in Scope} == {
        Scope.SERVER: 1,
        Scope.GPU: 2,
        Scope.REPLICA: 1,
    }
    assert np.isnan(block(samples[0], Scope.GPU)).all()
    load, busy, took, skipped = (
        [block(s, Scope.SERVER)[0, signal_index(Scope.SERVER, name)] for s in samples[:3]]
        for name in ("load_1min", "cpu_busy_s", "probe_sample_s", "probe_skipped_samples")
    )
    assert load == [1, 2, 3]
    assert busy == [0, 1, 2]
    assert took == skipped == [0, 0, 0]


def test_hellos_are_repeated() -> None:
    _, bodies = run_fake(CountingProbe(), until_s=10.05, period_s=1.0, hello_period_s=3.0)
    assert len(of_kind(bodies, Hello)) == 4


def test_a_scope_without_rows_has_no_block() -> None:
    probe = CountingProbe()
    probe.members = Members()
    _, bodies = run_fake(probe, until_s=0.2)
    assert set(of_kind(bodies, Sample)[0].blocks) == {"server"}


def test_a_value_too_large_for_32_bits_is_infinite_and_no_error() -> None:
    readings = MEMBERS.absent()
    readings[Scope.GPU][:] = 1e300
    assert np.isinf(np.frombuffer(as_blocks(readings)["gpu"], "<f4")).all()


def test_a_probe_that_fails_is_counted_logged_once_and_asked_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(number: int) -> None:
        if number in (2, 3, 4):
            msg = "no such GPU"
            raise RuntimeError(msg)

    runner, bodies = run_fake(CountingProbe(fail), until_s=0.75)
    assert runner.num_failed == 3
    assert [s.sequence for s in of_kind(bodies, Sample)] == [*range(runner.num_sent)]
    assert runner.num_sent >= 4
    assert caplog.messages == ["probe 'p0' took no sample: RuntimeError: no such GPU"]


def test_a_recording_runs_through_the_runner() -> None:
    runner, bodies = run_fake(RecordedProbe(), until_s=1.05)
    power = [block(s, Scope.GPU)[0, signal_index(Scope.GPU, "power_watts")] for s in
             of_kind(bodies, Sample)]  # fmt: skip
    assert runner.num_failed == 0
    assert all(90 <= value <= 700 for value in power)


def run_real(
    probe: CountingProbe,
    period_s: float,
    during: Callable[[InProcessTransport, Inbox, ProbeRunner], Coroutine[Any, Any, None]],
) -> tuple[ProbeRunner, list[bytes]]:
    """Run on the real clock while something happens; return the runner and what is left."""

    async def main() -> tuple[ProbeRunner, list[bytes]]:
        transport = InProcessTransport()
        inbox = await transport.subscribe("trimtab.*.r0", 100_000)
        runner = ProbeRunner(probe, PLACE, transport, timing=Timing(period_s=period_s))
        running = asyncio.create_task(runner.run())
        await during(transport, inbox, runner)
        runner.stop()
        await asyncio.wait_for(running, 60.0)
        return runner, inbox.take()

    return asyncio.run(main())


def test_a_sample_that_overruns_is_skipped_over_and_pings_are_still_answered_at_once() -> None:
    release = threading.Event()
    probe = CountingProbe(lambda number: release.wait(60.0) if number == 2 else None)
    pongs: list[Pong] = []

    async def during(transport: InProcessTransport, inbox: Inbox, runner: ProbeRunner) -> None:
        while probe.num_samples < 2:  # the second sample hangs
            await asyncio.sleep(0.002)
        skipped_before = runner.num_skipped
        while runner.num_skipped < skipped_before + 5:
            await asyncio.sleep(0.002)
        assert runner.num_sent == 1
        asked_at_s = time.monotonic()
        ping = Ping(probe="p0", nonce=42, sent_at_s=123.0)
        await transport.publish(subjects.ping("p0"), encode(ping))
        inbox.take()
        assert await inbox.wait(60.0)
        pongs.extend(of_kind(inbox.take(), Pong))
        assert asked_at_s <= pongs[0].received_at_s <= pongs[0].sent_at_s <= time.monotonic()
        assert probe.num_samples == 2  # still hanging
        release.set()
        while runner.num_sent < 3:
            await asyncio.sleep(0.002)

    runner, bodies = run_real(probe, 0.01, during)
    assert (pongs[0].nonce, pongs[0].ping_sent_at_s) == (42, 123.0)
    samples = of_kind(bodies, Sample)
    skipped = signal_index(Scope.SERVER, "probe_skipped_samples")
    assert block(samples[-1], Scope.SERVER)[0, skipped] >= 5
    assert runner.num_skipped >= 5


def test_a_probe_that_never_returns_does_not_hold_up_the_end() -> None:
    release = threading.Event()
    probe = CountingProbe(lambda _number: release.wait(60.0))

    async def during(_t: InProcessTransport, _i: Inbox, runner: ProbeRunner) -> None:
        while not runner.num_skipped:
            await asyncio.sleep(0.002)

    run_real(probe, 0.01, during)
    assert not release.is_set()
    release.set()


def test_cheap_probes_are_sampled_every_two_milliseconds() -> None:
    async def during(_t: InProcessTransport, _i: Inbox, runner: ProbeRunner) -> None:
        while runner.num_sent < 50:
            await asyncio.sleep(0.005)

    runner, bodies = run_real(CountingProbe(), 0.002, during)
    sampled_at_s = [sample.sampled_at_s for sample in of_kind(bodies, Sample)]
    # A busy machine may hold up most of them.
    assert np.quantile(np.diff(sampled_at_s), 0.1) < 0.02
    assert runner.num_failed == 0


def test_pings_of_others_and_broken_ones_are_counted_and_not_answered() -> None:
    async def during(transport: InProcessTransport, inbox: Inbox, runner: ProbeRunner) -> None:
        await asyncio.sleep(0.005)
        for body in (b"junk", encode(Ping(probe="p1", nonce=1, sent_at_s=0.0))):
            await transport.publish(subjects.ping("p0"), body)
        while runner.num_bad_pings < 2:
            await asyncio.sleep(0.002)
        assert of_kind(inbox.take(), Pong) == []

    run_real(CountingProbe(), 0.01, during)


@pytest.mark.parametrize("name", ["period_s", "hello_period_s"])
def test_periods_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be above 0, got 0"):
        Timing(**{name: 0})
