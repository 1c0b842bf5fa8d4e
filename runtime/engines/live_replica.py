"""Where a live replica is reached, and which engine it runs.

Does not know: how its engine is asked, or who started it.
"""

from dataclasses import dataclass
from enum import StrEnum


class EngineKind(StrEnum):
    """Engines that are known."""

    LLAMACPP = "llamacpp"
    VLLM = "vllm"
    SGLANG = "sglang"
    SIMULATED = "simulated"
    """Trimtab's own, for load tests without a model; its metrics page is vLLM's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveReplica:
    """One replica of a live fleet.

    Raises:
        ValueError: the port is none.
    """

    name: str
    """As in the cluster file."""
    engine: EngineKind
    host: str
    port: int
    model: str
    """What the engine calls the model that it serves; what is asked for is rewritten to it."""
    api_key: str | None = None
    """Sent as bearer token; None for none."""
    kv_events: str | None = None
    """ZMQ address of its KV events; None if it publishes none."""
    kv_replay: str | None = None
    """ZMQ address at which missed KV events are asked for."""

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            msg = f"port of replica '{self.name}' must be from 1 to 65535, got {self.port}"
            raise ValueError(msg)

    @property
    def url(self) -> str:
        """Where its HTTP interface is."""
        return f"http://{self.host}:{self.port}"
