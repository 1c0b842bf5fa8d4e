"""Live fleet files: YAML that says where each replica of a cluster is reached.

    cluster: cluster.yaml          # what the fleet is made of, relative to this file
    replicas:                      # one entry for each replica of the cluster, in any order
      - name: local/tiny-4x256-0
        engine: llamacpp           # or vllm, sglang, simulated
        url: http://127.0.0.1:8101
        model: tiny                # what the engine calls its model
        api_key_env: ENGINE_KEY    # variable that holds its key (default: none)
        kv_events: tcp://127.0.0.1:5557   # its KV events (default: none)
        kv_replay: tcp://127.0.0.1:5558   # where missed ones are asked for (default: none)

Does not know: whether anybody is there.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, Field

from ...env.cluster import ClusterSpec
from ...env.cluster_file import load_cluster
from ...env.config_file import Entry, entries, faults_message, read_yaml, validated
from ...traces.errors import ConfigError
from ..engines.live_replica import EngineKind, LiveReplica


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveFleetSpec:
    """A cluster and where its replicas are reached, in the cluster's order."""

    cluster: ClusterSpec
    replicas: tuple[LiveReplica, ...]


def _is_http(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
        msg = f"must be http://HOST:PORT without a path, got {url!r}"
        raise ValueError(msg)
    if parts.port is None:
        msg = f"must name its port, got {url!r}"
        raise ValueError(msg)
    return url


class _File(Entry):
    """Top level of a live fleet file."""

    cluster: str = Field(min_length=1)
    """Cluster file, relative to this one, or the name of a bundled one."""
    replicas: list[Any] = Field(min_length=1)
    """Where each replica of the cluster is reached."""


class _ReplicaEntry(Entry):
    """One item of `replicas`."""

    name: str = Field(min_length=1)
    """As the cluster calls it."""
    engine: Annotated[EngineKind, Field(strict=False)]
    """Which engine it runs."""
    url: Annotated[str, AfterValidator(_is_http)]
    """Where its HTTP interface is."""
    model: str = Field(min_length=1)
    """What the engine calls the model that it serves."""
    api_key_env: str | None = None
    """Environment variable that holds its key."""
    kv_events: str | None = None
    """ZMQ address of its KV events."""
    kv_replay: str | None = None
    """ZMQ address at which missed KV events are asked for."""

    def replica(self) -> LiveReplica:
        """Return the replica that this entry describes."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        key = None if self.api_key_env is None else os.environ.get(self.api_key_env)
        return LiveReplica(
            name=self.name,
            engine=self.engine,
            host=parts.hostname,
            port=parts.port,
            model=self.model,
            api_key=key,
            kv_events=self.kv_events,
            kv_replay=self.kv_replay,
        )


def read_live_fleet(path: Path) -> LiveFleetSpec:
    """Read a live fleet file.

    Raises: `ConfigError` with every fault of the file.
    """
    faults: list[str] = []
    file = validated(_File, read_yaml("live fleet", path), "", faults)
    if file is None:
        raise ConfigError(faults_message("live fleet", str(path), faults))
    found = entries(_ReplicaEntry, file.replicas, "replicas", faults)
    beside = path.parent / file.cluster
    cluster = load_cluster(beside if beside.is_file() else file.cluster)
    faults += _name_faults(found, [replica.name for replica in cluster.replicas])
    faults += [
        f"{place}.api_key_env: the variable '{entry.api_key_env}' is not set; set it"
        for place, entry in found.items()
        if entry.api_key_env is not None and entry.api_key_env not in os.environ
    ]
    if faults:
        raise ConfigError(faults_message("live fleet", str(path), faults))
    by_name = {entry.name: entry.replica() for entry in found.values()}
    return LiveFleetSpec(
        cluster=cluster, replicas=tuple(by_name[replica.name] for replica in cluster.replicas)
    )


def _name_faults(found: dict[str, _ReplicaEntry], known: Sequence[str]) -> list[str]:
    """Return what is wrong with the names of the replicas."""
    faults, seen = [], set()
    for place, entry in found.items():
        if entry.name not in known:
            faults.append(
                f"{place}.name: the cluster has no replica '{entry.name}'; "
                f"it has {', '.join(known)}"
            )
        if entry.name in seen:
            faults.append(f"{place}.name: '{entry.name}' stands here twice")
        seen.add(entry.name)
    missing = [name for name in known if name not in seen]
    if missing:
        faults.append(f"replicas: no entry for {', '.join(missing)}; add where they are reached")
    return faults


def live_fleet_text(cluster_file: str, replicas: Sequence[LiveReplica]) -> str:
    """Return a live fleet file for replicas without keys."""
    items = [
        {
            "name": replica.name,
            "engine": str(replica.engine),
            "url": replica.url,
            "model": replica.model,
            **({"kv_events": replica.kv_events} if replica.kv_events else {}),
            **({"kv_replay": replica.kv_replay} if replica.kv_replay else {}),
        }
        for replica in replicas
    ]
    return yaml.safe_dump({"cluster": cluster_file, "replicas": items}, sort_keys=False)
