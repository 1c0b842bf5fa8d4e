"""Status line and headers of a replica's answer: what of them goes on to the client.

Does not know: connections, or which request is answered.
"""

from collections.abc import Sequence

from .answers import STATUS_LINES
from .request_head import Header

# What concerns one connection only, or is said anew.
_NOT_PASSED_ON = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"te"),
        *(b"trailer", b"transfer-encoding", b"upgrade", b"x-request-id", b"x-trimtab-replica"),
    )
)
# These have no body, whatever their headers say.
_BARE = (204, 304)


class AnswerHead:
    """Status line and headers; answers of one replica mostly share one."""

    __slots__ = ("has_length", "is_event_stream", "length_line", "lines", "status")

    def __init__(self, status: int, headers: Sequence[Header]) -> None:
        self.status = status
        self.is_event_stream = False
        self.length_line = b""
        """The header that tells the body's length, empty if there is none."""
        lines = [STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        for name, value in headers:
            if name in _NOT_PASSED_ON:
                continue
            if name == b"content-length":
                self.length_line = b"content-length: %s\r\n" % value
                continue
            if name == b"content-type":
                self.is_event_stream = value.startswith(b"text/event-stream")
            lines += (name, b": ", value, b"\r\n")
        self.lines = b"".join(lines)
        """All that goes on but that header."""
        self.has_length = bool(self.length_line) or status in _BARE
        """Whether the client knows by it where the body ends."""
