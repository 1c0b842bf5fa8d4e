"""How much it takes to see a fleet: probes' frames through aggregators and hub, at 10 Hz and more.

A simulated fleet sends what probes of real servers would: values that follow a load, clocks that
are off by up to 500 ms and drift by up to 100 ppm, frames that are lost, doubled, reordered, torn
and of another version, probes that lie. Its frames are made ahead, and making them is timed apart.
All aggregators and the hub share one process on one core. In-process, frames are handed over by
hand, once by the wall's clock and once (`alone_`) by one that stands still while other programs
have the core, as on a core of its own. With NATS, the server and the probes run in processes of
their own on another core, and all frames travel over it, those from aggregators to the hub too.

Aggregators tick in turn, each ten times a second, and a state is out after each.

Ages are from the true moment of sampling to that when a state shows the sample for the first time.
Errors are in scaled units (`env/state/registry.py`: 1 is the whole of a share), against features
derived from every sample, whole and in time: beside the dead band of the aggregators
(`error_promised`) they hold what lost and spoilt samples cost. Counts are those of honest probes,
each beside what was injected; a frame that comes after the next one counts as lost as well. The
first 1.5 s, until clocks are known, are not measured.

Run: python benchmarks/telemetry.py [--json] [--servers 512] [--gpus 8] [--seconds 12]
     [--transport in-process|nats|both] [--tick-ms 100]
"""

import argparse
import gc
import json
import os
import sys
import time

from telemetry_path.clocks import CoreClock, FakeClock, WallClock
from telemetry_path.in_process import run_in_process
from telemetry_path.over_nats import play_over_nats, run_over_nats
from telemetry_path.schedule import Schedule

from trimtab.runtime.telemetry.signals import num_values
from trimtab.runtime.telemetry.simulated.layout import SimulatedLayout

SEED = 4
# Figures of the run by a core clock that are told beside those of the wall's.
ALONE = ("states_per_s", "age_p50_ms", "age_p99_ms", "age_max_ms", "cpu_ms_per_tick", "error_max")


def make_schedule(arguments: argparse.Namespace) -> Schedule:
    layout = SimulatedLayout(
        num_servers=arguments.servers,
        num_gpus=arguments.gpus,
        servers_per_rack=arguments.servers_per_rack,
    )
    return Schedule(layout, arguments.seconds, seed=SEED)


def warm_up() -> None:
    """Compile, and load what is compiled."""
    layout = SimulatedLayout(num_servers=2)
    run_in_process(Schedule(layout, 0.7), FakeClock, tick_s=0.1)


def pin(core: int) -> None:
    """Run this process, and those that it starts, on one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Return the figures of a run for each transport, `nats_` before those over NATS."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    schedule = make_schedule(arguments)
    layout = schedule.probes.layout
    per_server = num_values(num_gpus=layout.num_gpus, num_replicas=layout.num_replicas)
    figures: dict[str, float] = {
        "num_servers": layout.num_servers,
        "num_gpus": layout.num_servers * layout.num_gpus,
        "num_racks": layout.num_racks,
        "load_average": os.getloadavg()[0],
        "num_raw_signals": layout.num_servers * per_server,
        "generation_ms_per_tick": 1e3
        * schedule.cpu_s
        / arguments.seconds
        * arguments.tick_ms
        / 1e3,
    }
    tick_s = arguments.tick_ms / 1e3
    warm_up()
    if arguments.transport in ("in-process", "both"):
        pin(cores[-1])
        gc.freeze()  # the frames made ahead are no garbage, however long one looks
        figures |= run_in_process(schedule, WallClock, tick_s=tick_s).figures()
        alone = run_in_process(make_schedule(arguments), CoreClock, tick_s=tick_s).figures()
        figures |= {f"alone_{name}": alone[name] for name in ALONE}
    if arguments.transport in ("nats", "both"):
        command = [sys.executable, __file__, *sys.argv[1:]]
        schedule = make_schedule(arguments)
        pin(cores[0])
        over_nats = run_over_nats(schedule, command, tick_s=tick_s, own_core=cores[-1])
        figures |= {f"nats_{name}": value for name, value in over_nats.items()}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--servers", type=int, default=512)
    parser.add_argument("--gpus", type=int, default=8, help="of each server")
    parser.add_argument("--servers-per-rack", type=int, default=128, help="of one aggregator")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each run")
    parser.add_argument(
        "--tick-ms", type=float, default=100.0, help="between two ticks of an aggregator"
    )
    parser.add_argument("--transport", choices=("in-process", "nats", "both"), default="both")
    parser.add_argument("--probes-of", metavar="URL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.probes_of:
        play_over_nats(make_schedule(arguments), arguments.probes_of)
        return
    started_s = time.monotonic()
    figures = measure(arguments)
    gc.unfreeze()
    figures |= {"wall_s": time.monotonic() - started_s}
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:40} {value:>16,.4f}")


if __name__ == "__main__":
    main()
