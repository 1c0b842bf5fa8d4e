"""A run in one process: frames made ahead, aggregators and hub, at the pace of a clock.

Does not know: what is measured (`observer.py`).
"""

import time

from telemetry_path.observer import Observer
from telemetry_path.path import Path
from telemetry_path.schedule import Schedule

# s between two looks for frames that arrived
POLL_S = 0.002


def run_in_process(schedule: Schedule, *, tick_s: float, is_real_time: bool) -> Observer:
    """Play a schedule and return what was observed.

    Without real time every look and every tick comes at its very moment, however long it takes.
    """
    path = Path(schedule.probes.layout)
    observer = Observer(schedule, path)
    start_s, num_ticks, now_s = time.monotonic(), 0, 0.0
    while now_s < schedule.seconds:
        if is_real_time:
            time.sleep(POLL_S)
            now_s = time.monotonic() - start_s
        else:
            now_s = round(now_s + POLL_S, 6)
        with observer.cpu.part("generation"):
            deliveries = schedule.advance(now_s)
        with observer.cpu.part("ingest"):
            path.deliver(deliveries, now_s)
            pings = path.pings(now_s)
        with observer.cpu.part("generation"):
            for probe, ping in pings:
                schedule.probes.answer(probe, ping, now_s)
        if now_s >= (num_ticks + 1) * tick_s:
            num_ticks = int(now_s / tick_s + 1e-9)
            state = path.tick(now_s, observer.cpu)
            published_s = time.monotonic() - start_s if is_real_time else now_s
            observer.take(state, published_s)
    return observer
