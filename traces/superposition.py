"""A workload of any rate and length from one recorded trace.

Stretching a trace's clock would change its bursts; instead, windows of the trace at random
offsets are laid over one another at their real pace. Copies are independent, so the sum is
smoother than one copy, as the sum of many users is; each keeps its own bursts. Copies share no
session and no cached prefix, not even a system prompt that is common to the recorded trace.

Does not know: how the trace was recorded.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .schema import REQUEST_SCHEMA, RequestTrace
from .transform import separate_copies

_IntArray = npt.NDArray[np.int64]
_FloatArray = npt.NDArray[np.float64]


def superpose(trace: RequestTrace, *, rate_rps: float, span_s: float, seed: int) -> RequestTrace:
    """A trace of `rate_rps * span_s` requests (rounded) over [0, span_s) from windows of `trace`.

    As many windows of length `span_s` as needed are cut from the trace, closed to a circle, at
    random offsets; of the last one a random part is kept. A window that passes the end goes on
    at the start as a new copy.

    Raises: ValueError for arguments that ask for no request, or a trace of no length.
    """
    for name, value in (("rate_rps", rate_rps), ("span_s", span_s)):
        if not 0.0 < value < float("inf"):
            msg = f"{name} must be finite and above 0, got {value}"
            raise ValueError(msg)
    num_wanted = round(rate_rps * span_s)
    if num_wanted < 1:
        msg = (
            f"rate_rps {rate_rps} over span_s {span_s} asks for {num_wanted} requests; "
            "expected at least 1; lengthen the span"
        )
        raise ValueError(msg)
    if trace.span_s <= 0.0:
        msg = (
            f"trace {trace.source.name!r} spans {trace.span_s} s with {len(trace)} requests; "
            "expected at least two arrival times"
        )
        raise ValueError(msg)
    rng = np.random.Generator(np.random.PCG64(seed))
    rows, arrival_s, copy_index = _draw_windows(trace, num_wanted, span_s, rng)
    order = np.argsort(arrival_s, kind="stable")
    table = trace.table.take(pa.array(rows[order]))
    place = REQUEST_SCHEMA.get_field_index("arrival_s")
    table = table.set_column(place, REQUEST_SCHEMA.field(place), pa.array(arrival_s[order]))
    stacked = RequestTrace(table, trace.block_tokens, trace.source)
    return separate_copies(stacked, copy_index[order])


def _draw_windows(
    trace: RequestTrace, num_wanted: int, span_s: float, rng: np.random.Generator
) -> tuple[_IntArray, _FloatArray, _IntArray]:
    """Rows of the trace, their new arrival times, and the copy that each belongs to."""
    from_start_s = trace.arrival_s - trace.arrival_s[0]
    # One mean gap closes the circle, so that the last and the first request do not coincide.
    circle_s = trace.span_s * (1.0 + 1.0 / (len(trace) - 1))
    parts: list[tuple[_IntArray, _FloatArray, _IntArray]] = []
    num_drawn, num_copies = 0, 0
    while num_drawn < num_wanted:
        rows, arrival_s, lap = _cut_window(from_start_s, circle_s, span_s, rng)
        surplus = num_drawn + rows.size - num_wanted
        if surplus > 0:
            kept = np.sort(rng.choice(rows.size, rows.size - surplus, replace=False))
            rows, arrival_s, lap = rows[kept], arrival_s[kept], lap[kept]
        if rows.size:
            parts.append((rows, arrival_s, lap + num_copies))
            num_copies += int(lap[-1]) + 1
            num_drawn += rows.size
    rows, arrival_s, copy_index = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return rows, arrival_s, copy_index


def _cut_window(
    from_start_s: _FloatArray, circle_s: float, span_s: float, rng: np.random.Generator
) -> tuple[_IntArray, _FloatArray, _IntArray]:
    """One window at a random offset: rows, times from its start, and laps round the circle."""
    offset_s = rng.random() * circle_s
    num_rows = from_start_s.size
    num_laps = int(np.ceil((offset_s + span_s) / circle_s))
    ends_s = np.minimum(offset_s + span_s - circle_s * np.arange(num_laps), circle_s)
    first = int(np.searchsorted(from_start_s, offset_s))
    last = np.searchsorted(from_start_s, ends_s)
    rows = np.concatenate([np.arange(first if i == 0 else 0, last[i]) for i in range(num_laps)])
    lap = np.repeat(np.arange(num_laps), last - np.where(np.arange(num_laps) == 0, first, 0))
    arrival_s = from_start_s[rows] + circle_s * lap - offset_s
    # Rounding may put a request at the window's edge just outside it.
    arrival_s = np.clip(arrival_s, 0.0, np.nextafter(span_s, 0.0))
    assert rows.size <= num_rows * num_laps, f"{rows.size} rows from {num_laps} laps of {num_rows}"
    return rows, arrival_s, lap
