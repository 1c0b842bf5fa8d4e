"""Request line and headers of a request: what a client sent, and what of it goes on to a replica.

Does not know: connections, or what a request asks for.
"""

from collections.abc import Mapping, Sequence

Header = tuple[bytes, bytes]

# What concerns one connection only, or is the gateway's own business with its client.
_NOT_FORWARDED = frozenset(
    (
        *(b"host", b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect", b"content-length"),
        *(b"authorization", b"accept-encoding", b"x-request-id", b"x-api-key", b"cookie"),
    )
)


class RequestHead:
    """Request line and headers; requests whose heads are the same share one."""

    __slots__ = ("headers", "is_old", "lines", "method", "path")

    def __init__(
        self,
        method: bytes,
        path: str,
        headers: Mapping[bytes, bytes],
        lines: bytes,
        *,
        is_old: bool = False,
    ) -> None:
        self.method, self.path, self.headers = method, path, headers
        self.lines = lines
        """Headers that go on to a replica."""
        self.is_old = is_old
        """Whether it is HTTP/1.0, which knows no chunks."""

    def add(self, name: bytes, value: bytes) -> "RequestHead":
        """Return the head with one more header for replicas, in place of the client's own."""
        headers = {**self.headers, name: value}
        return RequestHead(
            self.method, self.path, headers, forwarded_lines(headers), is_old=self.is_old
        )

    def forwarded(self, replica_lines: bytes, id_line: bytes, body: bytes) -> bytes:
        """Return a request with this head for a replica.

        `replica_lines` are the headers that only the replica gets, `id_line` that of the request.
        """
        head = b"POST %s HTTP/1.1\r\n%s%s%scontent-length: %d\r\n\r\n" % (
            self.path.encode(), replica_lines, self.lines, id_line, len(body),
        )  # fmt: skip
        return head + body


def by_name(headers: Sequence[Header]) -> dict[bytes, bytes]:
    """Return headers by name; the values of one that is repeated are put together in order."""
    found = dict(headers)
    if len(found) != len(headers):
        found.clear()
        for name, value in headers:
            found[name] = b"%s, %s" % (found[name], value) if name in found else value
    return found


def forwarded_lines(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the headers that go on to a replica, as lines."""
    # `connection` names further headers that are for this connection only.
    named = {name.strip().lower() for name in headers.get(b"connection", b"").split(b",")}
    return b"".join(
        [
            b"%s: %s\r\n" % item
            for item in headers.items()
            if item[0] not in _NOT_FORWARDED and item[0] not in named
        ]
    )
