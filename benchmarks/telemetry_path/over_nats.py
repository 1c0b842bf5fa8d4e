"""A run over NATS: probes in a process of their own, aggregators and hub in this one.

Both processes read one monotonic clock, so that true moments mean the same in both.

Does not know: what is measured (`observer.py`).
"""

import asyncio
import gc
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field

from telemetry_path.observer import Observer
from telemetry_path.path import Path, Turns
from telemetry_path.schedule import Schedule
from trimtab.runtime.telemetry import subjects
from trimtab.runtime.telemetry.frames import Ping, decode
from trimtab.runtime.telemetry.nats_server import NatsServer
from trimtab.runtime.telemetry.nats_transport import NatsTransport
from trimtab.runtime.telemetry.reasons import Reason
from trimtab.runtime.telemetry.transport import Inbox

# s between two looks for frames that arrived
POLL_S = 0.005
# s from the word to the first frame: connections must stand by then
HEAD_START_S = 1.0
_MAX_FRAMES = 4096


def play_over_nats(schedule: Schedule, url: str) -> None:
    """Send a schedule's frames and answer pings; the moment to start comes on standard input."""
    gc.freeze()
    print("ready", flush=True)
    asyncio.run(_play(schedule, url, float(sys.stdin.readline())))


async def _play(schedule: Schedule, url: str, start_s: float) -> None:
    transport = await NatsTransport.connect(url)
    pings = await transport.subscribe(subjects.ping(subjects.ANY), _MAX_FRAMES)
    layout = schedule.probes.layout
    racks = {layout.server_name(s): layout.rack_of(s) for s in range(layout.num_servers)}
    now_s = 0.0
    while now_s < schedule.seconds:
        await pings.wait(POLL_S)
        now_s = time.monotonic() - start_s
        for ping in pings.take():
            asked = decode(ping)
            pong = schedule.probes.pong(ping, time.monotonic() - start_s)
            if pong is not None and isinstance(asked, Ping):
                await transport.publish(subjects.pong(racks[asked.probe]), pong)
        for delivery in schedule.advance(now_s):
            await transport.publish(delivery.subject, delivery.body)
    await asyncio.sleep(HEAD_START_S)
    await transport.close()


def run_over_nats(
    schedule: Schedule, command: list[str], *, tick_s: float, own_core: int
) -> dict[str, float]:
    """Play a schedule over NATS and return the figures.

    `command` starts this program once more; with `--probes-of URL` it plays the probes. Server and
    probes start on this process's cores, which then moves to its own.
    """
    with NatsServer() as server:
        probes = subprocess.Popen(
            [*command, "--probes-of", server.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            if probes.stdout is None or probes.stdout.readline() != "ready\n":
                msg = f"the process of the probes must say that it is ready; run {command} by hand"
                raise RuntimeError(msg)
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, {own_core})
            gc.freeze()
            run = _Run(schedule, tick_s)
            asyncio.run(run.run(server.url, probes))
        finally:
            probes.kill()
            probes.wait()
    return run.observer.figures() | {"num_dropped": float(run.num_dropped)}


@dataclass(slots=True)
class _Run:
    """The side of the aggregators and the hub."""

    schedule: Schedule
    tick_s: float
    path: Path = field(init=False)
    observer: Observer = field(init=False)
    inboxes: list[tuple[str, Inbox]] = field(default_factory=list)
    num_dropped: int = 0

    def __post_init__(self) -> None:
        self.path = Path(self.schedule.probes.layout)
        self.observer = Observer(self.schedule, self.path, self.tick_s)

    async def run(self, url: str, probes: subprocess.Popen[str]) -> None:
        """Connect, let the probes begin, and tick until the schedule ends."""
        transport = await NatsTransport.connect(url)
        for rack in self.path.aggregators:
            for subject in (subjects.pong(rack), subjects.hello(rack), subjects.sample(rack)):
                self.inboxes.append((rack, await transport.subscribe(subject, _MAX_FRAMES)))
        to_hub = await transport.subscribe(subjects.rack(subjects.ANY), _MAX_FRAMES)
        await asyncio.sleep(0.1)
        start_s = time.monotonic() + HEAD_START_S
        if probes.stdin is not None:
            probes.stdin.write(f"{start_s}\n")
            probes.stdin.flush()
        turns, now_s = Turns(self.path.racks, self.tick_s), -HEAD_START_S
        while now_s < self.schedule.seconds:
            await to_hub.wait(POLL_S)
            if len(to_hub):
                state = self.path.take(to_hub.take(), time.monotonic() - start_s, self.observer.cpu)
                self.observer.take(state, time.monotonic() - start_s)
            now_s = time.monotonic() - start_s
            self._ingest(start_s)
            for probe, ping in self.path.pings(now_s) if now_s > 0 else ():
                await transport.publish(subjects.ping(probe), ping)
            if (rack := turns.due(now_s)) is not None:
                await self._tick(rack, transport, start_s)
        self.num_dropped = (
            sum(inbox.num_dropped for _, inbox in self.inboxes)
            + to_hub.num_dropped
            + transport.counts[Reason.DROPPED]
        )
        await transport.close()

    def _ingest(self, start_s: float) -> None:
        with self.observer.cpu.part("ingest"):
            for rack, inbox in self.inboxes:
                if len(inbox):
                    aggregator, now_s = self.path.aggregators[rack], time.monotonic() - start_s
                    for body in inbox.take():
                        aggregator.ingest(body, now_s)

    async def _tick(self, rack: str, transport: NatsTransport, start_s: float) -> None:
        """Let a rack sum up; its frames come to the hub over NATS."""
        with self.observer.cpu.part("tick"):
            frames = self.path.aggregators[rack].tick(time.monotonic() - start_s)
        for body in frames:
            self.path.num_rack_bytes += len(body)
            await transport.publish(subjects.rack(rack), body)
