"""Commands `trimtab fleet ...`: real llama.cpp replicas on this machine.

Does not know: how they are kept alive.
"""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..runtime.launcher import detached
from ..runtime.launcher.fleet_plan import LocalReplica
from ..runtime.launcher.supervisor import is_healthy
from ..runtime.launcher.tiny_model import TinyModel
from ..traces.errors import ConfigError

app = typer.Typer(
    help="Start, see and end real llama.cpp replicas on this machine.",
    no_args_is_help=True,
    add_completion=False,
)

Directory = Annotated[
    Path, typer.Option("--dir", help="Where the fleet's files, models and logs are kept.")
]
_DEFAULT_DIRECTORY = Path("runs/fleet")


def _numbers(text: str, name: str, num_replicas: int, *, is_whole: bool) -> list[float]:
    """Return one number a replica, from one for all or as many with commas between.

    Raises: `ConfigError` for anything else.
    """
    parts = text.split(",")
    try:
        values = [int(part) if is_whole else float(part) for part in parts]
    except ValueError as error:
        kind = "whole numbers" if is_whole else "numbers"
        msg = f"--{name} must be {kind} with commas between, got '{text}'"
        raise ConfigError(msg) from error
    if len(values) == 1:
        return values * num_replicas
    if len(values) != num_replicas:
        msg = f"--{name} must name one value or {num_replicas}, got {len(values)}: '{text}'"
        raise ConfigError(msg)
    return list(values)


@app.command()
def up(
    *,
    replicas: Annotated[int, typer.Option(min=1, help="Number of replicas.")] = 3,
    directory: Directory = _DEFAULT_DIRECTORY,
    layers: Annotated[str, typer.Option(help="Layers of the tiny model; one, or one each.")] = "4",
    width: Annotated[str, typer.Option(help="Its width, a multiple of 64; likewise.")] = "256",
    slots: Annotated[int, typer.Option(min=1, help="Requests at a time, each replica.")] = 4,
    slot_tokens: Annotated[int, typer.Option(min=64, help="Context of each slot, tokens.")] = 1024,
    slowdown: Annotated[str, typer.Option(help="Times slower than it could be; likewise.")] = "1",
    model: Annotated[Path | None, typer.Option(help="GGUF file to serve instead.")] = None,
) -> None:
    """Start replicas and return when all are healthy."""
    sizes = zip(
        _numbers(layers, "layers", replicas, is_whole=True),
        _numbers(width, "width", replicas, is_whole=True),
        _numbers(slowdown, "slowdown", replicas, is_whole=False),
        strict=True,
    )
    try:
        planned = [
            LocalReplica(
                model=TinyModel(num_layers=int(num_layers), width=int(values)),
                slots=slots,
                slot_tokens=slot_tokens,
                slowdown=times,
            )
            for num_layers, values, times in sizes
        ]
    except ValueError as error:
        raise ConfigError(str(error)) from error
    console = Console(highlight=False)
    with console.status(f"starting {replicas} replicas"):
        state = detached.start(planned, directory, model_path=model)
    console.print(f"{len(state.replicas)} replicas are up; {directory / 'fleet.yaml'} says where")


@app.command()
def status(directory: Directory = _DEFAULT_DIRECTORY) -> None:
    """Show the replicas that are up."""
    state = detached.read_state(directory)
    console = Console(highlight=False)
    if state is None:
        console.print(f"no fleet is up in '{directory}'")
        raise typer.Exit(1)
    table = Table("replica", "port", "pid", "restarts", "health", box=None)
    for replica in state.replicas:
        health = "healthy" if is_healthy(replica["port"]) else "does not answer"
        pid = str(replica["pid"] or "-")
        restarts = str(replica["num_restarts"])
        table.add_row(replica["name"], str(replica["port"]), pid, restarts, health)
    console.print(table)


@app.command()
def down(directory: Directory = _DEFAULT_DIRECTORY) -> None:
    """End all replicas; their models and logs stay in the directory."""
    number = detached.stop(directory)
    Console(highlight=False).print(f"{number} replicas ended")


@app.command()
def kill(name: str, directory: Directory = _DEFAULT_DIRECTORY) -> None:
    """Kill one replica, to see what happens; it restarts by itself."""
    state = detached.read_state(directory)
    known = {} if state is None else {replica["name"]: replica["pid"] for replica in state.replicas}
    if known.get(name) is None:
        msg = f"the fleet has no running replica '{name}'; it has {', '.join(known) or 'none'}"
        raise ConfigError(msg)
    os.kill(known[name], 9)
