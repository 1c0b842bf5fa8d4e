"""Traces that a user names on the command line: a store directory or a bundled recording.

Does not know: what they are used for.
"""

from pathlib import Path

from ..traces.bundled import BUNDLED_FILES, load_bundled
from ..traces.errors import TraceError
from ..traces.schema import RequestTrace
from ..traces.store import read_store

# Fewer requests or a shorter time than this cannot be cut into parts that stand for the whole.
MIN_REQUESTS = 30
MIN_SPAN_S = 5.0


def open_trace(path_or_name: str) -> RequestTrace:
    """Return the trace of a store directory, or a bundled one by name.

    Raises:
        TraceError: there is neither.
    """
    if path_or_name in BUNDLED_FILES:
        return load_bundled(path_or_name)
    path = Path(path_or_name)
    if path.is_dir():
        return read_store(path)
    what = "is a file, not a trace store" if path.exists() else "does not exist"
    msg = (
        f"trace '{path_or_name}' {what}; expected a directory made by `trimtab trace import` or "
        f"one of {', '.join(BUNDLED_FILES)}"
    )
    raise TraceError(msg)


def shortness(trace: RequestTrace) -> str | None:
    """Return why a trace is too short to judge policies on, or None."""
    if len(trace) >= MIN_REQUESTS and trace.span_s >= MIN_SPAN_S:
        return None
    return (
        f"has {len(trace)} requests over {trace.span_s:.1f} s; evaluation needs at least "
        f"{MIN_REQUESTS} requests over {MIN_SPAN_S:g} s; record for longer"
    )
