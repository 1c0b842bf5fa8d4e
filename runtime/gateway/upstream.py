"""Connections to replicas: a pool for each, and the protocol that reads their answers.

A connection carries one exchange at a time and is kept for the next. The newest of the idle ones is
taken first, so that those which an engine has closed meanwhile die out.

Does not know: clients, or what is done with an answer (`exchange.py`).
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import httptools

from ..engines.live_replica import LiveReplica
from .answer_head import AnswerHead
from .counts import GatewayCounts
from .known_head import KnownHead
from .outbox import Outbox

if TYPE_CHECKING:
    from .exchange import Exchange

# Headers that say where a body ends; without them it ends with the connection.
_LENGTHS = (b"content-length", b"transfer-encoding")
_OK = 200


class UpstreamConnection(asyncio.Protocol):
    """One connection to a replica."""

    __slots__ = (
        "_body_bytes", "_ends_by_closing", "_head", "_headers", "_is_complete", "_is_keep_alive",
        "_parser", "_pool", "exchange", "has_answered", "is_closed", "is_reused", "transport",
    )  # fmt: skip

    def __init__(self, pool: "UpstreamPool") -> None:
        self._pool = pool
        self._headers: list[tuple[bytes, bytes]] = []
        self._head: AnswerHead | None = None
        self._body_bytes = 0
        self._parser = httptools.HttpResponseParser(self)
        self.transport: asyncio.Transport | None = None
        self.exchange: Exchange | None = None
        self._is_complete = self._is_keep_alive = self._ends_by_closing = False
        self.is_closed = False
        self.is_reused = False
        """Whether it has carried an exchange before."""
        self.has_answered = False
        """Whether anything has come for the exchange in hand."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = transport  # type: ignore[assignment]

    def send(self, exchange: "Exchange", data: bytes) -> None:
        """Begin an exchange."""
        self.exchange, self.has_answered = exchange, False
        self._ends_by_closing = False
        assert self.transport is not None
        self._pool.outbox.put(self.transport, data)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        exchange = self.exchange
        if exchange is None:
            # Nobody has asked: the engine is not to be trusted with this connection any more.
            self.close()
            return
        is_first = not self.has_answered
        self.has_answered = True
        if is_first and self._take_known(exchange, data):
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._is_keep_alive = False
            if self.exchange is exchange and not self._is_complete:
                self.exchange = None
                self.close()
                exchange.on_upstream_lost(f"answered no proper HTTP ({error})")
                return
        if self.exchange is not exchange:
            return
        if not self._is_complete:
            exchange.flush()
            return
        if is_first and self._is_keep_alive:
            self._remember(data)
        self._complete(exchange)

    def _take_known(self, exchange: "Exchange", data: bytes) -> bool:
        """Take an answer whose head is that of the replica's last one; return whether it is."""
        if self._pool.known_answer is None:
            return False
        known, head = self._pool.known_answer
        body = known.body_of(data)
        if body is None:
            return False
        self.exchange = exchange.upstream = None
        self._pool.release(self)
        exchange.on_whole(head, body)
        return True

    def _remember(self, data: bytes) -> None:
        """Remember the head of an answer that came whole and alone."""
        head = self._head
        if head is None or head.status != _OK or not head.length_line:
            return
        known = KnownHead.of(data, self._body_bytes)
        self._pool.known_answer = None if known is None else (known, head)

    def _complete(self, exchange: "Exchange") -> None:
        """Let go of an exchange whose answer is whole, so that the connection can have another."""
        self.exchange = exchange.upstream = None
        self._is_complete = False
        if self._is_keep_alive:
            self._pool.release(self)
        else:
            self.close()
        exchange.on_complete()

    # Called by the parser.

    def on_message_begin(self) -> None:
        """See httptools."""
        self._headers, self._head, self._body_bytes = [], None, 0
        if self._is_complete:
            # More than was asked for: the next answer must not be taken from it.
            self._is_keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """See httptools."""
        status = self._parser.get_status_code()
        if status < 200 or self.exchange is None or self._is_complete:
            return
        self._is_keep_alive = self._parser.should_keep_alive()
        self._ends_by_closing = not self._is_keep_alive and not any(
            name in _LENGTHS for name, _ in self._headers
        )
        self._head = head = AnswerHead(status, self._headers)
        self.exchange.on_head(head, head.length_line)

    def on_body(self, data: bytes) -> None:
        """See httptools."""
        if self.exchange is not None and not self._is_complete:
            self._body_bytes += len(data)
            self.exchange.on_body(data)

    def on_message_complete(self) -> None:
        """See httptools."""
        if self.exchange is not None and self._parser.get_status_code() >= 200:
            self._is_complete = True

    def eof_received(self) -> bool:
        """See `asyncio.Protocol`."""
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.is_closed = True
        self._pool.forget(self)
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            return
        if self._ends_by_closing and error is None:
            exchange.upstream = None
            exchange.on_complete()
        else:
            exchange.on_upstream_lost("closed the connection")

    def pause_writing(self) -> None:
        """A request's body is bounded: it may wait in the buffer."""

    def resume_writing(self) -> None:
        """See `pause_writing`."""

    def close(self) -> None:
        """Close at once; an engine takes that for an abort."""
        self.is_closed = True
        if self.transport is not None:
            self.transport.abort()


class UpstreamPool:
    """The connections to one replica, and the exchanges that are there."""

    def __init__(
        self,
        replica: LiveReplica,
        counts: GatewayCounts,
        outbox: Outbox,
        *,
        connect_timeout_s: float,
        max_idle: int,
    ) -> None:
        self.replica, self.outbox = replica, outbox
        self.known_answer: tuple[KnownHead, AnswerHead] | None = None
        """Head of the replica's last whole answer, which the next one mostly shares."""
        self.exchanges: set[Exchange] = set()
        """Those that this replica has."""
        self.refused_at_s = float("nan")
        """When it last could not be reached; NaN once it could again."""
        key = replica.api_key
        key_line = f"authorization: Bearer {key}\r\n" if key else ""
        self.request_lines = f"host: {replica.host}:{replica.port}\r\n{key_line}".encode()
        """Headers of each request that goes there."""
        self.answer_line = f"x-trimtab-replica: {replica.name}\r\n".encode()
        """Header of each answer that comes from there."""
        self._counts = counts
        self._idle: deque[UpstreamConnection] = deque()
        self._all: set[UpstreamConnection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._connect_timeout_s, self._max_idle = connect_timeout_s, max_idle

    def send(self, exchange: "Exchange", data: bytes) -> None:
        """Send a request over an idle connection, or a new one."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if not connection.is_closed:
                exchange.upstream = connection
                connection.send(exchange, data)
                return
        task = asyncio.get_running_loop().create_task(self._connect(exchange, data))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, exchange: "Exchange", data: bytes) -> None:
        attempt = exchange.attempt
        self._counts.num_connects += 1
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(self), self.replica.host, self.replica.port
                )
        except asyncio.CancelledError:
            if exchange.is_waiting(attempt):
                exchange.on_upstream_lost("was replaced")
            raise
        except (OSError, TimeoutError) as error:
            self._counts.num_connect_failures += 1
            self.refused_at_s = loop.time()
            if exchange.is_waiting(attempt):
                what = "did not accept in time" if isinstance(error, TimeoutError) else str(error)
                exchange.on_upstream_lost(f"could not be reached ({what})")
            return
        self._all.add(connection)
        self.refused_at_s = float("nan")
        if exchange.is_waiting(attempt):
            exchange.upstream = connection
            connection.send(exchange, data)
        else:
            # The exchange has ended or gone elsewhere meanwhile.
            self.release(connection)

    def release(self, connection: UpstreamConnection) -> None:
        """Keep a connection for the next exchange."""
        if len(self._idle) >= self._max_idle or connection not in self._all:
            connection.close()
            return
        connection.is_reused = True
        self._idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """Note that a connection is closed."""
        self._all.discard(connection)

    def close(self) -> None:
        """Close all connections; exchanges on them are told."""
        for task in list(self._connecting):
            task.cancel()
        connections, self._all = list(self._all), set()
        self._idle.clear()
        for connection in connections:
            connection.close()
