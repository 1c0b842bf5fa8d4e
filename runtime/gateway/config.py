"""Limits of a gateway: what a client may send, how long it may take, how often is tried again.

Does not know: what is done at a limit.
"""

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Where a gateway listens, and its limits.

    Raises:
        ValueError: a limit is not above 0.
    """

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 0
    """Port to listen on; 0 lets the system choose."""
    max_connections: int = 16384
    """Connections of clients at a time; more are told 503."""
    max_head_bytes: int = 32768
    """Request line and headers."""
    max_headers: int = 100
    """Headers of a request."""
    max_body_bytes: int = 16 * 1024 * 1024
    """Body of a request."""
    max_pipelined: int = 16
    """Requests that a connection may send ahead of their answers."""
    head_timeout_s: float = 10.0
    """Time for a request's head, from its first byte."""
    body_timeout_s: float = 60.0
    """Time for its body."""
    idle_timeout_s: float = 120.0
    """Time that a connection without a request is kept."""
    write_timeout_s: float = 60.0
    """Time that a client may leave its answer unread."""
    linger_timeout_s: float = 1.0
    """Time that a refused client is still listened to, so that its answer is not lost."""
    connect_timeout_s: float = 1.0
    """Time to connect to a replica."""
    request_timeout_s: float = 1800.0
    """Longest time for a whole request; a header may ask for less."""
    max_attempts: int = 3
    """Replicas that a request is sent to, before the first byte of an answer."""
    max_idle_upstreams: int = 512
    """Connections to a replica that are kept without a request."""
    sweep_s: float = 0.05
    """Time between two looks for what is overdue."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name not in ("host", "port") and not value > 0:
                msg = f"{each.name} must be above 0, got {value}"
                raise ValueError(msg)
