"""A run in one process: frames made ahead, aggregators and hub, at the pace of a clock.

Does not know: what is measured (`observer.py`).
"""

from telemetry_path.clocks import Clock
from telemetry_path.observer import Observer
from telemetry_path.path import Path, Turns
from telemetry_path.schedule import Schedule

# s between two looks for frames that arrived
POLL_S = 0.002


def run_in_process(schedule: Schedule, clock_type: type[Clock], *, tick_s: float) -> Observer:
    """Play a schedule and return what was observed."""
    path = Path(schedule.probes.layout)
    observer = Observer(schedule, path, tick_s)
    clock, turns = clock_type(), Turns(path.racks, tick_s)
    while (now_s := clock.now_s()) < schedule.seconds:
        if (rack := turns.due(now_s)) is not None:
            state = path.tick(rack, now_s, observer.cpu)
            observer.take(state, clock.now_s())
            continue
        with observer.cpu.part("generation"):
            deliveries = schedule.advance(now_s)
        with observer.cpu.part("ingest"):
            path.deliver(deliveries, now_s)
            pings = path.pings(now_s)
        with observer.cpu.part("generation"):
            for probe, ping in pings:
                schedule.probes.answer(probe, ping, now_s)
        clock.wait(POLL_S)
    return observer
