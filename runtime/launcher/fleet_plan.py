"""What a local fleet is to be: models, slots and ports of its replicas, and the files that say so.

Does not know: processes.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ...env.measured_latency import MeasuredLatency
from ...traces.atomic import replace_file
from ..engines.live_replica import EngineKind, LiveReplica
from .live_fleet_file import LiveFleetSpec, live_fleet_text, read_live_fleet
from .tiny_model import TinyModel, tiny_model_file

SERVER = "local"
"""Name of this machine in the cluster file of a local fleet."""
SERVED_NAME = "tiny"
"""What clients call the model of a local fleet, unless they bring their own."""
_PAGE_TOKENS = 16
# What stands for this machine in the catalogue: one "GPU" a replica.
_CPU = "XEON8480-256G"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalReplica:
    """One llama.cpp server to be.

    Raises:
        ValueError: it has no slot, too little context, or is to be slowed below its own speed.
    """

    model: TinyModel = field(default_factory=TinyModel)
    slots: int = 4
    """Requests at a time."""
    slot_tokens: int = 1024
    """Context of each slot."""
    slowdown: float = 1.0
    """How many times slower it is to be than it could: it is stopped for part of the time."""

    def __post_init__(self) -> None:
        if self.slots < 1:
            msg = f"slots must be at least 1, got {self.slots}"
            raise ValueError(msg)
        if self.slot_tokens < 64:
            msg = f"slot_tokens must be at least 64, got {self.slot_tokens}"
            raise ValueError(msg)
        if not 1.0 <= self.slowdown <= 100.0:
            msg = f"slowdown must be from 1 to 100, got {self.slowdown}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedServer:
    """A server process: its model's file, port and settings."""

    name: str
    model_path: Path
    port: int
    replica: LocalReplica


def free_ports(number: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def plan_fleet(
    replicas: Sequence[LocalReplica], directory: Path, *, model_path: Path | None = None
) -> tuple[LiveFleetSpec, tuple[PlannedServer, ...]]:
    """Make the models, choose ports and write `fleet.yaml` and `cluster.yaml` into a directory.

    `model_path` is a GGUF file that all replicas serve in place of a generated model; simulations
    of the fleet then take it for the tiny model.

    Raises:
        ValueError: there is no replica, or a model file is not there.
        MissingExtraError: the package `gguf` is not installed.
    """
    if not replicas:
        msg = "a fleet must have at least 1 replica, got none"
        raise ValueError(msg)
    if model_path is not None and not model_path.is_file():
        msg = f"there is no model file '{model_path}'; give the path of a GGUF file"
        raise ValueError(msg)
    directory.mkdir(parents=True, exist_ok=True)
    for model in {replica.model for replica in replicas}:
        (directory / f"{model.name}.yaml").write_text(
            yaml.safe_dump(model.model_entry(), sort_keys=False)
        )
    (directory / "cluster.yaml").write_text(_cluster_text(replicas))
    names = _names(replicas)
    ports = free_ports(len(replicas))
    addresses = [
        LiveReplica(
            name=name, engine=EngineKind.LLAMACPP, host="127.0.0.1", port=port, model=SERVED_NAME
        )
        for name, port in zip(names, ports, strict=True)
    ]
    fleet_path = directory / "fleet.yaml"
    fleet_path.write_text(live_fleet_text("cluster.yaml", addresses))
    servers = tuple(
        PlannedServer(
            name=name,
            model_path=model_path or tiny_model_file(replica.model, directory / "models"),
            port=port,
            replica=replica,
        )
        for name, port, replica in zip(names, ports, replicas, strict=True)
    )
    return read_live_fleet(fleet_path), servers


def set_measured(directory: Path, times: MeasuredLatency) -> LiveFleetSpec:
    """Write measured times into the cluster file of a local fleet; return the fleet with them."""
    path = directory / "cluster.yaml"
    cluster = yaml.safe_load(path.read_text())
    for replica in cluster["replicas"]:
        replica["measured"] = {
            "step_ms": 1e3 * times.step_s,
            "token_us": 1e6 * times.token_s,
            "sequence_us": 1e6 * times.sequence_s,
            "context_ns": 1e9 * times.context_s,
            "attention_ns": 1e9 * times.attention_s,
        }
    replace_file(path, yaml.safe_dump(cluster, sort_keys=False).encode())
    return read_live_fleet(directory / "fleet.yaml")


def _names(replicas: Sequence[LocalReplica]) -> list[str]:
    """Return the names that the cluster file will give the replicas."""
    counts: dict[str, int] = {}
    names = []
    for replica in replicas:
        number = counts.get(replica.model.name, 0)
        counts[replica.model.name] = number + 1
        names.append(f"{SERVER}/{replica.model.name}-{number}")
    return names


def _cluster_text(replicas: Sequence[LocalReplica]) -> str:
    """Return the cluster file: this machine, one CPU a replica."""
    models = sorted({f"{replica.model.name}.yaml" for replica in replicas})
    cluster = {
        "name": "local",
        "models": models,
        "servers": [{"name": SERVER, "gpu": _CPU, "num_gpus": len(replicas), "zone": "local"}],
        "replicas": [
            {
                "server": SERVER,
                "model": replica.model.name,
                "gpus": [number],
                "max_num_seqs": replica.slots,
                "max_batch_tokens": 512,
                "page_tokens": _PAGE_TOKENS,
                "kv_blocks": replica.slots * replica.slot_tokens // _PAGE_TOKENS,
            }
            for number, replica in enumerate(replicas)
        ],
    }
    return yaml.safe_dump(cluster, sort_keys=False)
