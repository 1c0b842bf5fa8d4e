"""Probes, aggregator and hub over a transport, with a clock that the test turns."""

import asyncio

import numpy as np
import pytest
from racks import SM, FakeProbe, make_aggregator, make_layout, make_probes

from trimtab.env.state.feature import Node
from trimtab.runtime.telemetry import subjects
from trimtab.runtime.telemetry.fleet_layout import fleet_of_racks
from trimtab.runtime.telemetry.hub import Hub
from trimtab.runtime.telemetry.reasons import Reason
from trimtab.runtime.telemetry.service import AggregatorService, HubService, Pace
from trimtab.runtime.telemetry.transport import InProcessTransport


class Turned:
    """A clock; sleeping turns no hand, only lets others run."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._wakers: list[tuple[float, asyncio.Event]] = []

    async def sleep(self, span_s: float) -> None:
        event = asyncio.Event()
        self._wakers.append((self.now_s + span_s, event))
        await event.wait()

    async def turn(self, span_s: float) -> None:
        self.now_s += span_s
        due = [waker for waker in self._wakers if waker[0] <= self.now_s + 1e-9]
        self._wakers = [waker for waker in self._wakers if waker not in due]
        for _, event in due:
            event.set()
        for _ in range(20):
            await asyncio.sleep(0)


async def run_fleet(num_ticks: int, lose_tick: int | None = None) -> Hub:
    layout, clock, transport = make_layout(), Turned(), InProcessTransport()
    aggregator, hub = make_aggregator(layout), Hub(fleet_of_racks([layout]))
    pace = Pace(clock=lambda: clock.now_s, sleep=clock.sleep)
    services = [
        AggregatorService(aggregator, transport, pace=pace),
        HubService(hub, transport, pace=pace),
    ]
    tasks = [asyncio.create_task(service.run()) for service in services]
    probes = make_probes(layout, offset_s=0.4)
    pings = {
        probe.name: await transport.subscribe(subjects.ping(probe.name), 8) for probe in probes
    }
    await clock.turn(0.0)
    for probe in probes:
        await transport.publish(subjects.hello("r0"), probe.hello())
    for t in range(num_ticks):
        await send_samples(transport, probes, clock.now_s)
        if t == lose_tick:
            aggregator.tick(clock.now_s)  # its frame goes nowhere
        await clock.turn(0.1)
        for probe in probes:
            for body in pings[probe.name].take():
                await transport.publish(subjects.pong("r0"), probe.answer(body, clock.now_s))
        await clock.turn(0.0)
    for service in services:
        service.stop()
    await clock.turn(0.1)
    await asyncio.gather(*tasks)
    await transport.close()
    assert aggregator.counts[Reason.UNRELIABLE] == 0
    return hub


async def send_samples(
    transport: InProcessTransport, probes: list[FakeProbe], now_s: float
) -> None:
    for probe in probes:
        await transport.publish(subjects.sample("r0"), probe.sample(now_s))


def test_values_go_from_probes_to_the_state():
    hub = asyncio.run(run_fleet(10))
    state = hub.state(1.1)
    assert state.values[Node.GPU][:, SM] == pytest.approx([0.5] * 4, abs=0.02)
    assert (state.age_s[Node.GPU] < 0.25).all()
    assert np.isfinite(state.feature(Node.SERVER, "clock_error_s")).all()
    assert hub.counts.total == 0


def test_a_key_is_asked_for_after_a_loss():
    hub = asyncio.run(run_fleet(10, lose_tick=5))
    assert hub.counts[Reason.LOST] == 1
    assert (hub.state(1.1).age_s[Node.GPU] < 0.25).all()
    assert hub.wanted_keys(5.0) == []


def test_a_period_must_be_above_zero():
    with pytest.raises(ValueError, match="period_s must be above 0, got 0"):
        Pace(period_s=0)
