"""W3C trace context: what a caller's `traceparent` says, and the span that stands below it.

A span's ids follow from the caller's context and the request alone: the gateway, which passes them
on to the replica, and the writer, which exports them later, find the same ones without a word.

Does not know: OpenTelemetry, or headers other than this one.
Source: W3C Trace Context level 2, section 3.2.
"""

import hashlib
import re
import secrets

import msgspec

from ..dispatcher.request import RequestFacts

_TRACE_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
# The version that is written; of later ones, the four known fields are read.
_VERSION, _NO_VERSION = "00", "ff"
_SAMPLED = 0x01


class SpanIds(msgspec.Struct, frozen=True, gc=False):
    """Names of one span, of its trace, and of the span above it."""

    trace_id: int
    span_id: int
    parent_id: int
    """Span of the caller; 0 if there is none."""
    is_sampled: bool

    @property
    def header(self) -> bytes:
        """Value of `traceparent` for what this span calls."""
        flags = _SAMPLED if self.is_sampled else 0
        return b"%s-%032x-%016x-%02x" % (_VERSION.encode(), self.trace_id, self.span_id, flags)


def parse_trace_parent(text: str) -> tuple[int, int, bool] | None:
    """Return (trace, span, whether it is sampled) of a header; None if it is not valid."""
    match = _TRACE_PARENT.fullmatch(text)
    if match is None:
        return None
    version, trace, span, flags, rest = match.groups()
    trace_id, span_id = int(trace, 16), int(span, 16)
    is_known = version != _NO_VERSION and (version != _VERSION or rest is None)
    if not is_known or not trace_id or not span_id:
        return None
    return trace_id, span_id, bool(int(flags, 16) & _SAMPLED)


class TraceContext:
    """Gives each request its span's ids; the same request gets the same ones."""

    def __init__(self, sample_frac: float = 1.0, *, salt: bytes | None = None) -> None:
        """Of requests without a caller's context, `sample_frac` are sampled; else it decides.

        Raises:
            ValueError: `sample_frac` is not in [0, 1].
        """
        if not 0.0 <= sample_frac <= 1.0:
            msg = f"sample_frac must be from 0 to 1, got {sample_frac}"
            raise ValueError(msg)
        self._threshold = round(sample_frac * (1 << 64))
        self._salt = secrets.token_bytes(16) if salt is None else salt

    def ids(self, facts: RequestFacts) -> SpanIds:
        """Return the ids of a request's span."""
        # Ids that clients give may come twice; the moment of arrival tells them apart.
        name = f"{facts.request_id} {facts.arrived_at_s!r}".encode()
        digest = hashlib.blake2b(name, digest_size=24, key=self._salt).digest()
        span_id = int.from_bytes(digest[16:]) or 1
        parent = parse_trace_parent(facts.trace_parent) if facts.trace_parent else None
        if parent is not None:
            return SpanIds(parent[0], span_id, parent[1], parent[2])
        trace_id = int.from_bytes(digest[:16]) or 1
        is_sampled = trace_id & 0xFFFF_FFFF_FFFF_FFFF < self._threshold
        return SpanIds(trace_id, span_id, 0, is_sampled)

    def header(self, facts: RequestFacts) -> bytes:
        """Return the `traceparent` that a replica gets with a request."""
        return self.ids(facts).header
