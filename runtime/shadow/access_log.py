"""Access logs of routers that are not ours: JSON lines of nginx, Envoy or anybody.

What is needed of a request: when it came, where it went, how long it took and how many bytes it
had. Each may go by several names; lines that lack one, or are no JSON, are counted and left out.

Does not know: what is made of the requests.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from .redecisions import ShadowError

# Names by which each fact goes: nginx's variables first, then Envoy's operators, then plain ones.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "at": ("msec", "time_iso8601", "start_time", "START_TIME", "time", "timestamp", "ts"),
    "upstream": ("upstream_addr", "upstream_host", "UPSTREAM_HOST", "upstream", "replica"),
    "span": ("request_time", "duration", "DURATION", "duration_ms", "duration_s"),
    "first": ("upstream_header_time", "response_duration", "RESPONSE_DURATION", "ttft_s"),
    "bytes_in": ("request_length", "bytes_received", "BYTES_RECEIVED", "request_bytes"),
    "bytes_out": ("bytes_sent", "body_bytes_sent", "BYTES_SENT", "response_bytes"),
    "id": ("request_id", "x_request_id", "REQ(X-REQUEST-ID)", "id"),
    "status": ("status", "response_code", "RESPONSE_CODE"),
}
# Envoy writes these in milliseconds; nginx writes seconds.
_MILLISECONDS = frozenset(
    ("duration", "DURATION", "duration_ms", "response_duration", "RESPONSE_DURATION")
)
_NEEDED = ("at", "upstream", "span", "bytes_in")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedRequest:
    """One line of an access log; times in seconds from the log's first request."""

    request_id: str
    arrived_s: float
    replica: str
    first_s: float
    """From arrival to the first byte; NaN if the log does not say."""
    span_s: float
    bytes_in: float
    bytes_out: float
    status: int


@dataclass(frozen=True, slots=True)
class AccessLog:
    """What a log says."""

    requests: tuple[LoggedRequest, ...]
    """In order of arrival."""
    left_out: Mapping[str, int]
    """Lines that were not used, by reason."""


def _fact(line: Mapping[str, Any], what: str) -> tuple[str, Any] | None:
    for name in _NAMES[what]:
        if line.get(name) not in (None, "", "-"):
            return name, line[name]
    return None


def _moment_s(value: Any) -> float:
    if isinstance(value, int | float):
        return float(value)
    try:
        return float(value)
    except ValueError:
        return datetime.fromisoformat(str(value).replace("Z", "+00:00")).timestamp()


def _seconds(fact: tuple[str, Any] | None) -> float:
    if fact is None:
        return float("nan")
    name, value = fact
    # nginx lists the times of several attempts with commas; the last one answered.
    seconds = float(str(value).split(",")[-1])
    return 1e-3 * seconds if name in _MILLISECONDS else seconds


def read_access_log(path: Path, upstreams: Mapping[str, str]) -> AccessLog:
    """Read a log; `upstreams` names the replica at each `host:port`.

    Raises:
        ShadowError: no line can be used.
    """
    found: list[LoggedRequest] = []
    left_out: Counter[str] = Counter()
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            if not text.strip():
                continue
            request = _request(text, upstreams, left_out)
            if request is not None:
                found.append(request)
    if not found:
        msg = (
            f"access log '{path}' has no line that can be used ({dict(left_out)}); expected JSON "
            f"lines with {', '.join('/'.join(_NAMES[what][:3]) for what in _NEEDED)}"
        )
        raise ShadowError(msg)
    found.sort(key=lambda request: request.arrived_s)
    start_s = found[0].arrived_s
    return AccessLog(tuple(_shifted(found, start_s)), dict(left_out))


def _shifted(requests: Sequence[LoggedRequest], start_s: float) -> list[LoggedRequest]:
    return [replace(request, arrived_s=request.arrived_s - start_s) for request in requests]


def _request(
    text: str, upstreams: Mapping[str, str], left_out: Counter[str]
) -> LoggedRequest | None:
    try:
        line = json.loads(text)
    except ValueError:
        left_out["no JSON"] += 1
        return None
    facts = {what: _fact(line, what) for what in _NAMES} if isinstance(line, dict) else {}
    for what in _NEEDED:
        if facts.get(what) is None:
            left_out[f"no {what}"] += 1
            return None
    upstream = str(facts["upstream"][1]).split(",")[-1].strip()  # type: ignore[index]
    if upstream not in upstreams:
        left_out[f"unknown upstream {upstream}"] += 1
        return None
    try:
        name, at = facts["at"]  # type: ignore[misc]
        span_s = _seconds(facts["span"])
        # nginx logs the end of a request, Envoy its start.
        end_s = _moment_s(at)
        arrived_s = end_s if name in ("start_time", "START_TIME") else end_s - span_s
        bytes_in = float(facts["bytes_in"][1])  # type: ignore[index]
        out = facts["bytes_out"]
        return LoggedRequest(
            request_id=str(facts["id"][1]) if facts["id"] else f"line-{arrived_s:.6f}",
            arrived_s=arrived_s,
            replica=upstreams[upstream],
            first_s=_seconds(facts["first"]),
            span_s=span_s,
            bytes_in=bytes_in,
            bytes_out=float(out[1]) if out else float("nan"),
            status=int(facts["status"][1]) if facts["status"] else 200,
        )
    except (ValueError, TypeError):
        left_out["a number that is none"] += 1
        return None
