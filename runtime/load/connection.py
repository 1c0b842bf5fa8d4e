"""One client connection of a load: sends a request, notes when its answer came.

Does not know: when requests are due (`player.py`).
"""

import asyncio
import re
import time
from collections.abc import Callable

import httptools

_TOKENS = re.compile(rb'"completion_tokens"\s*:\s*(\d+)')


class LoadConnection(asyncio.Protocol):
    """Carries one request after another over one connection."""

    def __init__(self, on_end: Callable[["LoadConnection", bool], None]) -> None:
        """`on_end` is told of each end, and whether the answer was whole."""
        self._on_end = on_end
        self.transport: asyncio.Transport | None = None
        self.is_closed = False
        self.is_busy = False
        self.index = -1
        """Of the request in hand."""
        self.status = 0
        self.first_at_s = self.end_at_s = float("nan")
        self.num_events = 0
        self.replica = b""
        self._tokens: int | None = None
        self._is_keep_alive = True

    def send(self, index: int, data: bytes) -> None:
        """Send a request."""
        self.index, self.is_busy = index, True
        self.status, self.num_events, self.replica, self._tokens = 0, 0, b"", None
        self.first_at_s = self.end_at_s = float("nan")
        self._parser = httptools.HttpResponseParser(self)
        assert self.transport is not None
        self.transport.write(data)

    @property
    def output_tokens(self) -> int:
        """As the engine counts them, else events of the stream but its last."""
        return max(0, self.num_events - 1) if self._tokens is None else self._tokens

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        if name.lower() == b"x-trimtab-replica":
            self.replica = value

    def on_headers_complete(self) -> None:
        """See httptools."""
        self.status = self._parser.get_status_code()
        self._is_keep_alive = self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        """See httptools."""
        if self.first_at_s != self.first_at_s:
            self.first_at_s = time.monotonic()
        self.num_events += data.count(b"data:")
        for match in _TOKENS.finditer(data):
            self._tokens = int(match[1])

    def on_message_complete(self) -> None:
        """See httptools."""
        self.end_at_s, self.is_busy = time.monotonic(), False
        if not self._is_keep_alive:
            self.close()
        self._on_end(self, True)

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.is_closed = True
        if self.is_busy:
            self.is_busy = False
            self._on_end(self, False)

    def close(self) -> None:
        """Close at once."""
        self.is_closed = True
        if self.transport is not None:
            self.transport.abort()
