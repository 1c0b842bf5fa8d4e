"""A simulated engine as a process.

Does not know: how it answers (`server.py`).
Run: `python -m trimtab.runtime.simulated_engine --port 8101 --model tiny`.
"""

import argparse
import asyncio
import os
import signal
from dataclasses import fields
from pathlib import Path

import uvloop

from ..serving.child import die_with_parent
from .batch import EngineSpeed
from .server import SimulatedEngine


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve a simulated engine.")
    parser.add_argument("--port", type=int, default=0, help="0 lets the system choose")
    parser.add_argument("--port-file", type=Path, help="where the port is written")
    parser.add_argument("--model", default="simulated")
    parser.add_argument("--slowdown", type=float, default=1.0)
    for field in fields(EngineSpeed):
        kind = int if field.type is int or field.type == "int" else float
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, type=kind, default=field.default)
    return parser.parse_args()


async def _run(arguments: argparse.Namespace) -> None:
    speed = EngineSpeed(**{f.name: getattr(arguments, f.name) for f in fields(EngineSpeed)})
    engine = SimulatedEngine(speed, model=arguments.model)
    engine.batch.slowdown = arguments.slowdown
    port = await engine.start(port=arguments.port)
    if arguments.port_file is not None:
        partial = arguments.port_file.with_name(f".{arguments.port_file.name}.{os.getpid()}")
        partial.write_text(str(port))
        partial.replace(arguments.port_file)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await engine.close()


def main() -> None:
    """Serve until SIGTERM."""
    die_with_parent()
    uvloop.run(_run(_arguments()))


if __name__ == "__main__":
    main()
