"""What a request's headers say of how it is to be served.

Names are those of the Gateway API Inference Extension and of llm-d, side by side; where both are
there, llm-d's counts.

Does not know: bodies, tenants' keys, or which objectives there are in a cluster.
Source: research of both projects' headers (`x-gateway-inference-*`, `x-llm-d-*`, `x-slo-*`).
"""

import math
from collections.abc import Mapping

import msgspec

from . import faults

_OBJECTIVE = (b"x-llm-d-inference-objective", b"x-gateway-inference-objective")
_FLOW = (b"x-llm-d-inference-fairness-id", b"x-gateway-inference-fairness-id")
_TTFT = (b"x-llm-d-slo-ttft-ms", b"x-slo-ttft-ms")
_TPOT = (b"x-llm-d-slo-tpot-ms", b"x-slo-tpot-ms")
_TIMEOUT = (b"x-request-timeout-ms",)
_SESSION = (b"x-session-id",)
_APPLICATION = (b"x-application-id",)
_TRACE_PARENT = (b"traceparent",)

_NAMES = frozenset(
    (
        *(*_OBJECTIVE, *_FLOW, *_TTFT, *_TPOT),
        *(*_TIMEOUT, *_SESSION, *_APPLICATION, *_TRACE_PARENT),
    )
)
# Most bytes of a name that a header gives.
_MOST_NAME_BYTES = 256


class Objective(msgspec.Struct, frozen=True, gc=False):
    """What requests that name an objective are worth."""

    priority: int = 0
    """As the Inference Extension has it: more is more urgent, negative may be shed first."""
    weight: float = 1.0
    """What one request counts for."""


class CallHeaders(msgspec.Struct, kw_only=True, gc=False):
    """What headers say; None, empty or infinite where they say nothing."""

    objective: str | None = None
    flow: str | None = None
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    timeout_s: float = math.inf
    session: bytes = b""
    application: bytes = b""
    trace_parent: str = ""


NO_HEADERS = CallHeaders()


def _value(headers: Mapping[bytes, bytes], names: tuple[bytes, ...]) -> bytes:
    """Return the value of the first of some headers that is there, empty for none."""
    for name in names:
        value = headers.get(name)
        if value:
            return value[:_MOST_NAME_BYTES]
    return b""


def _name(headers: Mapping[bytes, bytes], names: tuple[bytes, ...]) -> str | None:
    """Return a header's text, None if it is not there."""
    value = _value(headers, names)
    return value.decode("utf-8", "replace") if value else None


def _seconds(headers: Mapping[bytes, bytes], names: tuple[bytes, ...]) -> float | None:
    """Return a span that a header gives in milliseconds.

    Raises: RequestFault if it is none.
    """
    value = _value(headers, names)
    if not value:
        return None
    try:
        span_ms = float(value)
    except ValueError:
        span_ms = math.nan
    if not 0.0 < span_ms < math.inf:
        name = next(name for name in names if headers.get(name))
        text = value.decode("utf-8", "replace")
        raise faults.bad_header(name.decode(), text, "a number of milliseconds above 0")
    return span_ms / 1000.0


def read_headers(headers: Mapping[bytes, bytes]) -> CallHeaders:
    """Return what headers say.

    Raises: RequestFault for a limit that is no number above 0.
    """
    if _NAMES.isdisjoint(headers):
        return NO_HEADERS
    return CallHeaders(
        objective=_name(headers, _OBJECTIVE),
        flow=_name(headers, _FLOW),
        ttft_slo_s=_seconds(headers, _TTFT),
        tpot_slo_s=_seconds(headers, _TPOT),
        timeout_s=_seconds(headers, _TIMEOUT) or math.inf,
        session=_value(headers, _SESSION),
        application=_value(headers, _APPLICATION),
        trace_parent=_name(headers, _TRACE_PARENT) or "",
    )
