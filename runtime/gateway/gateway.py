"""The gateway: listens, limits, and leads each request from its client to a replica and back.

Everything happens in one event loop, by callbacks. One timer looks for what is overdue, so that no
request needs a timer of its own.

Does not know: how replicas are chosen (`Dispatcher`) or requests understood (`RequestReader`).
"""

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Sequence

from ..dispatcher.dispatcher import Dispatcher
from ..dispatcher.request import RequestFacts
from ..engines.live_replica import LiveReplica
from ..understanding.reader import RequestReader
from .client import ClientConnection
from .config import GatewayConfig
from .counts import GatewayCounts
from .outbox import Outbox
from .request_head import RequestHead
from .tenants import OpenAccess, Tenants
from .upstream import UpstreamPool

INFERENCE_PATHS = frozenset(("/v1/completions", "/v1/chat/completions"))
# Pages that tell of the fleet what only those with a key may know.
KEYED_PATHS = frozenset(("/v1/models",))
# As Kubernetes has it, and as clients of vLLM ask for it.
_HEALTH_PATHS = frozenset(("/healthz", "/health"))
_TEXT = b"text/plain; version=0.0.4; charset=utf-8"
_JSON = b"application/json"
_MAX_ID_BYTES = 128


class Gateway:
    """One data port in front of the replicas of a fleet, in the fleet's order."""

    def __init__(
        self,
        config: GatewayConfig,
        dispatcher: Dispatcher,
        reader: RequestReader,
        replicas: Sequence[LiveReplica],
        *,
        tenants: Tenants | None = None,
        model_names: Sequence[str] = (),
        metrics_text: Callable[[], str] | None = None,
        trace_header: Callable[[RequestFacts], bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.dispatcher, self.reader = config, dispatcher, reader
        self.tenants: Tenants = tenants or OpenAccess()
        self.clock = clock
        self.trace_header = trace_header
        """Gives the `traceparent` that a replica gets; None passes on the client's own."""
        self.counts, self.outbox = GatewayCounts(), Outbox()
        self.inference_paths, self.keyed_paths = INFERENCE_PATHS, KEYED_PATHS
        self.is_draining = False
        self.is_ready = True
        """Whether `/readyz` says so; who composes the gateway may set it."""
        self.pools = [self._pool(replica) for replica in replicas]
        self._model_names = list(model_names) or sorted({r.model for r in replicas})
        self._metrics_text = metrics_text
        self.clients: set[ClientConnection] = set()
        """All that are connected."""
        self._id_prefix = f"req-{secrets.token_hex(4)}-"
        self._num_ids = 0
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    def _pool(self, replica: LiveReplica) -> UpstreamPool:
        return UpstreamPool(
            replica,
            self.counts,
            self.outbox,
            connect_timeout_s=self.config.connect_timeout_s,
            max_idle=self.config.max_idle_upstreams,
        )

    async def start(self) -> None:
        """Begin to listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: ClientConnection(self), self.config.host, self.config.port, backlog=4096
        )
        self._sweeper = loop.call_later(self.config.sweep_s, self._sweep)

    @property
    def port(self) -> int:
        """Where it listens.

        Raises:
            RuntimeError: it does not.
        """
        if self._server is None or not self._server.sockets:
            msg = "the gateway does not listen; call start() first"
            raise RuntimeError(msg)
        return int(self._server.sockets[0].getsockname()[1])

    async def drain(self, deadline_s: float) -> bool:
        """Take nothing new, and wait until all answers are whole; return whether they are.

        `deadline_s` is how long to wait.
        """
        self.is_draining, self.is_ready = True, False
        if self._server is not None:
            self._server.close()
        for client in list(self.clients):
            if client.exchange is None and not client.is_receiving:
                client.close()
        end_s = self.clock() + deadline_s
        while self.clients and self.clock() < end_s:
            await asyncio.sleep(min(0.01, deadline_s))
        return not self.clients

    async def close(self) -> None:
        """Stop at once; who still waits is cut off."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._server is not None:
            self._server.close()
        for client in list(self.clients):
            client.cut()
        for pool in self.pools:
            pool.close()
        # Transports close in the next turns of the loop.
        for _ in range(3):
            await asyncio.sleep(0)
        if self._server is not None:
            await self._server.wait_closed()

    # What the control side orders.

    def evict(self, replica: int, reason: str) -> int:
        """Send all requests of a replica elsewhere whose clients have got nothing yet."""
        return sum(exchange.evict(reason) for exchange in list(self.pools[replica].exchanges))

    def fail(self, replica: int, reason: str) -> int:
        """End all answers of a replica that have begun."""
        begun = [e for e in self.pools[replica].exchanges if e.has_begun]
        for exchange in begun:
            exchange.cut(reason)
        return len(begun)

    def replace(self, replica: int, address: LiveReplica) -> None:
        """Reach a replica elsewhere from now on; what it had is lost."""
        old, self.pools[replica] = self.pools[replica], self._pool(address)
        old.close()

    # What connections ask.

    def admit(self, client: ClientConnection) -> bool:
        """Count a connection; return whether there may be one more."""
        counts = self.counts
        counts.num_connections += 1
        self.clients.add(client)
        counts.connections = len(self.clients)
        if counts.connections > self.config.max_connections:
            counts.num_connections_refused += 1
            return False
        return True

    def forget(self, client: ClientConnection) -> None:
        """Note that a connection is gone."""
        self.clients.discard(client)
        self.counts.connections = len(self.clients)

    def request_id(self, asked: bytes | None) -> str:
        """Return a client's own id if it is a plain word, else a new one."""
        if asked and len(asked) <= _MAX_ID_BYTES and asked.isascii():
            text = asked.decode()
            if text.isprintable() and " " not in text:
                return text
        self._num_ids += 1
        return f"{self._id_prefix}{self._num_ids:x}"

    def may_enter(self, head: RequestHead) -> bool:
        """Return whether a request has a key, if keys are needed."""
        return self.tenants.find(head.headers.get(b"authorization")) is not None

    def page(self, head: RequestHead) -> tuple[int, bytes, bytes] | None:
        """Return status, content type and content of a page of its own; None if it has none."""
        if head.method not in (b"GET", b"HEAD"):
            return None
        if head.path in _HEALTH_PATHS:
            return 200, _JSON, b'{"status": "ok"}'
        if head.path == "/readyz":
            is_ready = self.is_ready and not self.is_draining
            return (
                (200, _JSON, b'{"ready": true}') if is_ready else (503, _JSON, b'{"ready": false}')
            )
        if head.path == "/metrics" and self._metrics_text is not None:
            return 200, _TEXT, self._metrics_text().encode()
        if head.path == "/v1/models":
            models = [
                {"id": name, "object": "model", "created": 0, "owned_by": "trimtab"}
                for name in self._model_names
            ]
            return 200, _JSON, json.dumps({"object": "list", "data": models}).encode()
        return None

    def _sweep(self) -> None:
        """Look for what is overdue."""
        loop, config = asyncio.get_running_loop(), self.config
        # First of all, so that no error below is the end of all limits.
        self._sweeper = loop.call_later(config.sweep_s, self._sweep)
        now_s = self.clock()
        for client in list(self.clients):
            exchange = client.exchange
            if now_s - client.unread_since_s > config.write_timeout_s:
                self.counts.num_slow_clients += 1
                client.cut()
            elif client.is_lingering:
                if now_s - client.since_s > config.linger_timeout_s:
                    client.cut()
            elif exchange is not None:
                if now_s > exchange.deadline_at_s:
                    exchange.on_deadline()
            elif client.is_receiving:
                limit_s = config.head_timeout_s if client.is_in_head else config.body_timeout_s
                if now_s - client.since_s > limit_s:
                    client.refuse_slow()
            elif now_s - client.since_s > config.idle_timeout_s:
                client.close()
