"""The observer's process.

Does not know: how a fleet is observed (`observer.py`).
Run: `python -m trimtab.runtime.observer --fleet fleet.yaml --socket PATH`, by `trimtab serve`.
"""

import argparse
import asyncio
import logging
import os
import signal
from pathlib import Path

from ..launcher.live_fleet_file import read_live_fleet
from ..serving.child import die_with_parent, stand_back
from .observer import observe


async def _run(fleet: Path, socket_path: Path) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await observe(read_live_fleet(fleet), socket_path, stop)


def main() -> None:
    """Observe until SIGTERM."""
    die_with_parent()
    stand_back()
    parser = argparse.ArgumentParser(description="Observe the servers of a live fleet.")
    parser.add_argument("--fleet", type=Path, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="observer: %(levelname)s %(message)s")
    asyncio.run(_run(arguments.fleet, arguments.socket))
    logging.shutdown()
    # The sketches' library complains of its own objects when the interpreter takes itself apart.
    os._exit(0)


if __name__ == "__main__":
    main()
