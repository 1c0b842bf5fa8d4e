"""A fleet of engines without a model, for load tests: as processes, under the same supervisor.

Their cluster file has their times as measured ones, so simulations of it take as long as they do.

Does not know: how such an engine works (`runtime/simulated_engine`).
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from ..engines.live_replica import EngineKind, LiveReplica
from ..simulated_engine.batch import BLOCK_TOKENS, EngineSpeed
from .fleet_plan import LocalReplica, PlannedServer, free_ports
from .live_fleet_file import live_fleet_text, read_live_fleet
from .supervisor import LocalFleet, ServerProcess

SERVED_NAME = "simulated"
# Stands for the model in the cluster file: sizes do not matter where times are measured.
_MODEL = "llama-3.2-1b"
_GPU = "A100-80G"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedReplica:
    """One simulated engine to be."""

    speed: EngineSpeed = field(default_factory=EngineSpeed)
    slowdown: float = 1.0
    """How many times slower it is than its speed says, and than the gateway believes."""


def simulated_fleet(replicas: Sequence[SimulatedReplica], directory: Path) -> LocalFleet:
    """Plan a fleet of simulated engines; `start` starts it.

    Raises:
        ValueError: there is no replica.
    """
    if not replicas:
        msg = "a fleet must have at least 1 replica, got none"
        raise ValueError(msg)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cluster.yaml").write_text(_cluster_text(replicas))
    names = [f"local/{_MODEL}-{number}" for number in range(len(replicas))]
    ports = free_ports(len(replicas))
    addresses = [
        LiveReplica(
            name=name, engine=EngineKind.SIMULATED, host="127.0.0.1", port=port,
            model=SERVED_NAME,
        )
        for name, port in zip(names, ports, strict=True)
    ]  # fmt: skip
    (directory / "fleet.yaml").write_text(live_fleet_text("cluster.yaml", addresses))
    (directory / "logs").mkdir(exist_ok=True)
    servers = [
        ServerProcess(
            plan=PlannedServer(name=name, model_path=Path(), port=port, replica=LocalReplica()),
            command=_command(replica, port),
            log_path=directory / "logs" / f"replica-{number}.log",
        )
        for number, (name, port, replica) in enumerate(zip(names, ports, replicas, strict=True))
    ]
    spec = read_live_fleet(directory / "fleet.yaml")
    return LocalFleet(spec=spec, servers=servers, directory=directory)


@contextmanager
def running_simulated_fleet(
    replicas: Sequence[SimulatedReplica], directory: Path
) -> Iterator[LocalFleet]:
    """Run a fleet of simulated engines as long as the block lasts."""
    with simulated_fleet(replicas, directory) as fleet:
        fleet.start()
        yield fleet


def _command(replica: SimulatedReplica, port: int) -> list[str]:
    command = [sys.executable, "-m", "trimtab.runtime.simulated_engine", "--port", str(port)]
    command += ["--model", SERVED_NAME, "--slowdown", str(replica.slowdown)]
    for each in fields(EngineSpeed):
        command += [f"--{each.name.replace('_', '-')}", str(getattr(replica.speed, each.name))]
    return command


def _cluster_text(replicas: Sequence[SimulatedReplica]) -> str:
    cluster = {
        "name": "simulated",
        "servers": [{"name": "local", "gpu": _GPU, "num_gpus": len(replicas), "zone": "local"}],
        "replicas": [
            {
                "server": "local",
                "model": _MODEL,
                "gpus": [number],
                "max_num_seqs": replica.speed.max_num_seqs,
                "max_batch_tokens": replica.speed.batch_tokens,
                "page_tokens": BLOCK_TOKENS,
                "kv_blocks": replica.speed.kv_tokens // BLOCK_TOKENS,
                "measured": {
                    "step_ms": 1e3 * replica.speed.step_s,
                    "token_us": 1e6 * replica.speed.prefill_token_s,
                    "sequence_us": 1e6 * replica.speed.decode_seq_s,
                },
            }
            for number, replica in enumerate(replicas)
        ],
    }
    return yaml.safe_dump(cluster, sort_keys=False)
