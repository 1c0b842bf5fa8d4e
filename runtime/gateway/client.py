"""Connections of clients: HTTP/1.1 in, one answer after the other out.

A request is parsed and written anew for its replica, so nothing that two parsers could read in two
ways ever gets there.

Does not know: what a request asks for, or where it goes (`exchange.py`).
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import httptools

from .answers import answer, error_body
from .exchange import Exchange

if TYPE_CHECKING:
    from .gateway import Gateway

# What concerns one connection only, or is the gateway's own business with its client.
_NOT_FORWARDED = frozenset(
    (
        *(b"host", b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect", b"content-length"),
        *(b"authorization", b"accept-encoding", b"x-request-id", b"x-api-key", b"cookie"),
    )
)


class RequestHead:
    """Request line and headers of one request."""

    __slots__ = ("answer_id_header", "headers", "is_old", "lines", "method", "path", "request_id")

    def __init__(
        self, method: bytes, path: str, headers: dict[bytes, bytes], request_id: str, is_old: bool
    ) -> None:
        self.method, self.path, self.headers = method, path, headers
        self.lines = b""
        """Headers that go on to a replica."""
        self.request_id = request_id
        self.answer_id_header = b"x-request-id: %s\r\n" % request_id.encode()
        self.is_old = is_old
        """Whether it is HTTP/1.0, which knows no chunks."""

    def add(self, name: bytes, value: bytes) -> None:
        """Send a replica one more header, in place of the client's own."""
        self.headers[name] = value
        self.lines = forwarded_lines(self.headers)

    def forwarded(self, body: bytes) -> tuple[bytes, bytes]:
        """Return the request for a replica, in two parts between which its own headers go."""
        return b"POST %s HTTP/1.1\r\n" % self.path.encode(), b"%s%scontent-length: %d\r\n\r\n%s" % (
            self.lines, self.answer_id_header, len(body), body,
        )  # fmt: skip


def forwarded_lines(headers: dict[bytes, bytes]) -> bytes:
    """Return the headers that go on to a replica, as lines."""
    return b"".join(
        [b"%s: %s\r\n" % item for item in headers.items() if item[0] not in _NOT_FORWARDED]
    )


class ClientConnection(asyncio.Protocol):
    """One connection of a client."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_forwarded",
        "_gateway",
        "_head_bytes",
        "_head_map",
        "_headers",
        "_is_broken",
        "_is_in_head",
        "_parser",
        "_queue",
        "_url",
        "exchange",
        "is_last",
        "since_s",
        "transport",
        "unread_since_s",
    )  # fmt: skip

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[tuple[RequestHead, bytes, bool]] = deque()
        self._headers: list[tuple[bytes, bytes]] = []
        self._url = b""
        self._body: list[bytes] = []
        self._head_bytes = self._body_bytes = 0
        self._head_map: dict[bytes, bytes] = {}
        self._forwarded: tuple[list[tuple[bytes, bytes]], bytes] = ([], b"")
        self._is_in_head = True
        self._is_broken = False
        self.transport: asyncio.Transport | None = None
        self.exchange: Exchange | None = None
        """The request that is being answered."""
        self.is_last = False
        """Whether the connection ends with the answer in hand."""
        self.since_s = gateway.clock()
        """When the request that is coming in began, or the last one ended."""
        self.unread_since_s = float("inf")
        """Since when the client leaves its answer unread."""

    @property
    def is_receiving(self) -> bool:
        """Whether a request has come in part."""
        return self._head_bytes > 0

    @property
    def is_in_head(self) -> bool:
        """Whether that part is of its head."""
        return self._is_in_head

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = transport  # type: ignore[assignment]
        if not self._gateway.admit(self):
            self._refuse(503, "too_many_connections", "Too many connections; try again later.")

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._is_broken:
            return
        if self._head_bytes == 0:
            self.since_s = self._gateway.clock()
        if self._is_in_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Refused at its head already.
            return
        except httptools.HttpParserError as error:
            if not self._is_broken:
                self._gateway.counts.num_malformed += 1
                self._refuse(400, "bad_request", f"The request is not proper HTTP: {error}")
        if self._is_in_head and self._head_bytes > self._gateway.config.max_head_bytes:
            self._refuse(431, "headers_too_large", self._head_text())

    # Called by the parser.

    def on_message_begin(self) -> None:
        """See httptools."""
        self._headers, self._body, self._url = [], [], b""
        self._body_bytes = 0
        self._is_in_head = True

    def on_url(self, url: bytes) -> None:
        """See httptools."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._is_in_head = False
        if self._is_broken:
            return
        config = self._gateway.config
        if len(self._headers) > config.max_headers or (
            self._head_bytes > config.max_head_bytes
            and sum(len(name) + len(value) for name, value in self._headers) > config.max_head_bytes
        ):
            self._refuse(431, "headers_too_large", self._head_text())
            return
        headers = self._head_map = dict(self._headers)
        if self._parser.should_upgrade():
            text = "This server does not upgrade connections; send the request without 'upgrade'."
            self._refuse(400, "no_upgrade", text)
            return
        length = headers.get(b"content-length")
        if length is not None and int(length) > self._gateway.config.max_body_bytes:
            self._refuse(413, "request_too_large", self._body_text())
        elif headers.get(b"expect", b"").lower() == b"100-continue" and self.exchange is None:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        """See httptools."""
        self._body_bytes += len(data)
        if self._body_bytes > self._gateway.config.max_body_bytes:
            self._body.clear()
            self._refuse(413, "request_too_large", self._body_text())
            return
        self._body.append(data)

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._is_broken:
            return
        parser, gateway = self._parser, self._gateway
        headers = self._head_map
        is_old = parser.get_http_version() == "1.0"
        path = self._url.partition(b"?")[0].decode("latin-1")
        head = RequestHead(
            parser.get_method(), path, headers,
            gateway.request_id(headers.get(b"x-request-id", b"")), is_old,
        )  # fmt: skip
        head.lines = self._lines(headers)
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        is_last = not parser.should_keep_alive()
        self._head_bytes, self._is_in_head = 0, True
        gateway.counts.num_requests += 1
        gateway.counts.body_bytes_in += len(body)
        if self.exchange is not None or self._queue:
            if len(self._queue) >= gateway.config.max_pipelined:
                self._refuse(429, "too_many_pipelined", "Too many requests ahead of their answers.")
                return
            self._queue.append((head, body, is_last))
            return
        self._begin(head, body, is_last)

    def _lines(self, headers: dict[bytes, bytes]) -> bytes:
        """Return the headers that go on; most clients send the same ones again and again."""
        same = [item for item in self._headers if item[0] != b"content-length"]
        if same != self._forwarded[0]:
            self._forwarded = (same, forwarded_lines(headers))
        return self._forwarded[1]

    def _begin(self, head: RequestHead, body: bytes, is_last: bool) -> None:
        gateway = self._gateway
        self.is_last = is_last or gateway.is_draining or self._is_broken
        if head.path in gateway.inference_paths:
            if head.method == b"POST":
                self.exchange = Exchange(gateway, self, head)
                self.exchange.begin(body, gateway.clock())
                return
            text = f"{head.path} takes POST, not {head.method.decode('latin-1')}."
            self._answer(405, error_body(405, "method_not_allowed", text), b"allow: POST\r\n")
            return
        page = gateway.page(head)
        if page is None:
            text = f"Unknown path: {head.path}"
            self._answer(404, error_body(404, "unknown_url", text))
            return
        status, content_type, content = page
        self._answer(status, content, content_type=content_type)

    def _answer(
        self,
        status: int,
        body: bytes,
        headers: bytes = b"",
        content_type: bytes = b"application/json",
    ) -> None:
        self._gateway.counts.count_answer(status)
        data = answer(
            status, body, content_type=content_type, headers=headers, is_last=self.is_last
        )
        self.write(data)
        self.on_answered()

    def on_answered(self) -> None:
        """The answer in hand is whole: go on with the next request, or close."""
        self.exchange = None
        self.since_s = self._gateway.clock()
        if self.is_last or self._gateway.is_draining:
            self.close()
        elif self._queue:
            self._begin(*self._queue.popleft())

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer what is no proper request, after the answers that are due before it; close."""
        if self._is_broken:
            return
        self._is_broken = self.is_last = True
        self._queue.clear()
        if self.exchange is None:
            self._gateway.counts.count_answer(status)
            self.write(answer(status, error_body(status, code, message), is_last=True))
            self.close()

    def refuse_slow(self) -> None:
        """The client takes too long to send its request."""
        self._gateway.counts.num_slow_clients += 1
        self._refuse(408, "request_timeout", "The request took too long to arrive.")

    def _head_text(self) -> str:
        config = self._gateway.config
        return (
            f"The request's head is larger than {config.max_head_bytes} bytes or has more than "
            f"{config.max_headers} headers."
        )

    def _body_text(self) -> str:
        return f"The request's body is larger than {self._gateway.config.max_body_bytes} bytes."

    def write(self, data: bytes) -> None:
        """Send bytes."""
        if self.transport is not None:
            self.transport.write(data)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self.unread_since_s = self._gateway.clock()
        if self.exchange is not None:
            self.exchange.pause(True)

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self.unread_since_s = float("inf")
        if self.exchange is not None:
            self.exchange.pause(False)

    def eof_received(self) -> bool:
        """See `asyncio.Protocol`."""
        # Who closes half is taken for gone, as engines and other proxies do.
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._gateway.forget(self)
        exchange, self.exchange = self.exchange, None
        self._queue.clear()
        if exchange is not None:
            exchange.abort()

    def close(self) -> None:
        """Close when all is written."""
        if self.transport is not None:
            self.transport.close()

    def cut(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self.transport.abort()
