"""Connections of clients: HTTP/1.1 in, one answer after the other out.

A request is parsed and written anew for its replica, so nothing that two parsers could read in two
ways ever gets there.

Does not know: what a request asks for, or where it goes (`exchange.py`).
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import httptools

from .answers import answer, error_body, wrong_key
from .exchange import Exchange
from .known_head import KnownHead
from .request_head import RequestHead, by_name, forwarded_lines

if TYPE_CHECKING:
    from .gateway import Gateway

# Heads that are remembered in vain before a connection is taken for one that never repeats one.
_MOST_VAIN = 4


class ClientConnection(asyncio.Protocol):
    """One connection of a client."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_forwarded",
        "_gateway",
        "_head",
        "_head_map",
        "_headers",
        "_is_between",
        "_is_broken",
        "_is_in_head",
        "_known_head",
        "_num_bytes",
        "_num_vain",
        "_parser",
        "_queue",
        "_url",
        "exchange",
        "is_last",
        "is_lingering",
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
        self._body: bytes | bytearray = b""
        self._num_bytes = self._body_bytes = 0
        self._head_map: dict[bytes, bytes] = {}
        self._forwarded: tuple[list[tuple[bytes, bytes]], bytes] = ([], b"")
        self._head: RequestHead | None = None
        self._known_head: KnownHead | None = None
        self._num_vain = 0
        self._is_between = self._is_in_head = True
        self._is_broken = False
        self.transport: asyncio.Transport | None = None
        self.exchange: Exchange | None = None
        """The request that is being answered."""
        self.is_last = False
        """Whether the connection ends with the answer in hand."""
        self.is_lingering = False
        """Whether the client was told why it is refused, and what it still sends is let fall."""
        self.since_s = gateway.clock()
        """When the request that is coming in began, or the last one ended."""
        self.unread_since_s = float("inf")
        """Since when the client leaves its answer unread."""

    @property
    def is_receiving(self) -> bool:
        """Whether a request has come in part."""
        return not self._is_between

    @property
    def is_in_head(self) -> bool:
        """Whether that part is of its head."""
        return self._is_in_head

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = transport  # type: ignore[assignment]
        if not self._gateway.admit(self):
            self.is_lingering = True
            self._refuse(503, "too_many_connections", "Too many connections; try again later.")

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._is_broken:
            return
        is_first = self._is_between
        if is_first:
            self.since_s = self._gateway.clock()
            if self._known_head is not None and self._take_known(data):
                return
        self._num_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Refused at its head already.
            return
        except httptools.HttpParserError as error:
            if not self._is_broken:
                self._gateway.counts.num_malformed += 1
                self._refuse(400, "bad_request", f"The request is not proper HTTP: {error}")
        if self._num_bytes > self._gateway.config.max_head_bytes:
            self._check_size()
        elif is_first and self._is_between:
            self._remember(data)

    def _take_known(self, data: bytes) -> bool:
        """Begin a request whose head is the last one's; return whether it is."""
        known, head = self._known_head, self._head
        assert known is not None
        body = known.body_of(data)
        if body is None or head is None or len(body) > self._gateway.config.max_body_bytes:
            return False
        self._num_vain = 0
        self._take(head, body, is_last=False)
        return True

    def _remember(self, data: bytes) -> None:
        """Remember the head of a request that came alone and whole, if it may come again."""
        self._known_head = None
        if self._num_vain >= _MOST_VAIN or self.is_last:
            return
        self._num_vain += 1
        self._known_head = KnownHead.of(data, self._body_bytes)

    def _check_size(self) -> None:
        config = self._gateway.config
        if self._is_in_head:
            self._refuse(431, "headers_too_large", self._head_text())
        # Ends of chunks and trailers count too, else they could go on for ever.
        elif self._num_bytes - 2 * config.max_body_bytes > config.max_head_bytes:
            self._refuse(413, "request_too_large", self._body_text())

    # Called by the parser.

    def on_message_begin(self) -> None:
        """See httptools."""
        self._headers, self._body, self._url = [], b"", b""
        self._body_bytes = 0
        self._is_in_head, self._is_between = True, False

    def on_url(self, url: bytes) -> None:
        """See httptools."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        # Trailers are nobody's business.
        if self._is_in_head:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._is_in_head = False
        if self._is_broken:
            return
        config = self._gateway.config
        if len(self._headers) > config.max_headers or (
            self._num_bytes > config.max_head_bytes
            and sum(len(name) + len(value) for name, value in self._headers) > config.max_head_bytes
        ):
            self._refuse(431, "headers_too_large", self._head_text())
            return
        headers = self._head_map = by_name(self._headers)
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
            self._body = b""
            self._refuse(413, "request_too_large", self._body_text())
        elif not self._body:
            self._body = data
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += data

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._is_broken:
            return
        parser, headers = self._parser, self._head_map
        is_old = parser.get_http_version() == "1.0"
        path = self._url.partition(b"?")[0].decode("latin-1")
        self._head = head = RequestHead(
            parser.get_method(), path, headers, self._lines(headers), is_old=is_old
        )
        body, self._body = bytes(self._body), b""
        self._num_bytes, self._is_in_head, self._is_between = 0, True, True
        self._take(head, body, is_last=not parser.should_keep_alive())

    def _take(self, head: RequestHead, body: bytes, *, is_last: bool) -> None:
        """Begin a request that is whole, or put it off."""
        counts = self._gateway.counts
        counts.num_requests += 1
        counts.body_bytes_in += len(body)
        if self.exchange is not None or self._queue or self._is_unread:
            self._put_off(head, body, is_last)
        else:
            self._begin(head, body, is_last)

    def _put_off(self, head: RequestHead, body: bytes, is_last: bool) -> None:
        """Keep a request until the answers before it are sent and read."""
        config, queue = self._gateway.config, self._queue
        num_bytes = len(body) + sum(len(item[1]) for item in queue)
        if len(queue) >= config.max_pipelined or num_bytes > config.max_body_bytes:
            self._refuse(429, "too_many_pipelined", "Too many requests ahead of their answers.")
        else:
            queue.append((head, body, is_last))

    @property
    def _is_unread(self) -> bool:
        return self.unread_since_s != float("inf")

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
            body = error_body(405, "method_not_allowed", text)
            self._answer(head, 405, body, headers=b"allow: POST\r\n")
            return
        if head.path in gateway.keyed_paths and not gateway.may_enter(head):
            self._answer(head, 401, wrong_key())
            return
        page = gateway.page(head)
        if page is None:
            text = f"Unknown path: {head.path}"
            self._answer(head, 404, error_body(404, "unknown_url", text))
            return
        status, content_type, content = page
        self._answer(head, status, content, content_type=content_type)

    def _answer(
        self,
        head: RequestHead,
        status: int,
        body: bytes,
        *,
        headers: bytes = b"",
        content_type: bytes = b"application/json",
    ) -> None:
        self._gateway.counts.count_answer(status)
        data = answer(
            status, body, content_type=content_type, headers=headers, is_last=self.is_last
        )
        self.write(data[: -len(body)] if head.method == b"HEAD" else data)
        self.on_answered()

    def on_answered(self) -> None:
        """The answer in hand is whole: go on with the next request, or close."""
        self.exchange = None
        self.since_s = self._gateway.clock()
        if self.is_last or self._gateway.is_draining:
            self.close()
        elif self._queue and not self._is_unread:
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
            self._gateway.outbox.put(self.transport, data)

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
        elif self._queue:
            self._begin(*self._queue.popleft())

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
        self._queue.clear()
        transport = self.transport
        if transport is None:
            return
        self._gateway.outbox.flush()
        if self._is_broken and not self.is_lingering and not transport.is_closing():
            # A client that still sends would lose its answer to the reset that closing causes.
            self.is_lingering = True
            self.since_s = self._gateway.clock()
            transport.write_eof()
        else:
            transport.close()

    def cut(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self.transport.abort()
