"""A load as a process of its own, so that whoever steers or watches does not hold it up.

It says `ready` once all requests are made, waits for a line, plays, and writes what clients saw.

Does not know: who is behind the gateway.
Run: `python -m trimtab.runtime.load --trace DIR --port 8080 --model NAME --out results.npy`.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import uvloop

from ...traces.store import read_store
from .player import LoadConfig, LoadPlayer

KEY_VARIABLE = "TRIMTAB_API_KEY"
"""Environment variable of the API key, which a command line would show to all."""


async def _play(arguments: argparse.Namespace) -> np.ndarray:
    config = LoadConfig(
        host=arguments.host,
        port=arguments.port,
        model=arguments.model,
        patience_s=arguments.patience,
        api_key=os.environ.get(KEY_VARIABLE),
    )
    player = LoadPlayer(read_store(arguments.trace), config)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if not arguments.at_once:
        sys.stdin.readline()
    return await player.play()


def main() -> None:
    """Play one trace once."""
    parser = argparse.ArgumentParser(description="Play a trace against a gateway.")
    parser.add_argument("--trace", type=Path, required=True, help="trace store")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True, help="results, as a NumPy file")
    parser.add_argument("--patience", type=float, default=30.0, help="s after the last request")
    parser.add_argument("--at-once", action="store_true", help="do not wait for a line")
    arguments = parser.parse_args()
    results = uvloop.run(_play(arguments))
    partial = arguments.out.with_name(f".{arguments.out.name}.{os.getpid()}")
    with partial.open("wb") as file:
        np.save(file, results, allow_pickle=False)
    partial.replace(arguments.out)


if __name__ == "__main__":
    main()
