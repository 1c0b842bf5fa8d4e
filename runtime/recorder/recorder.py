"""Records the requests of a live run, so that it can be replayed in the simulator.

In the request's path an event is appended and nothing else; a thread makes rows of them and writes.
A request is written once it has ended and all that arrived before it have, as a trace is in order
of arrival. Whatever goes wrong costs rows, which are counted, and nothing else.

Does not know: prompts (lengths and block hashes are all that it gets), or the files' layout
(`recording.py`).
"""

import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...traces.errors import TrimtabError
from ..dispatcher.request import Placement, Refusal, RequestEnd, RequestFacts
from .recording import OUTCOME_DIR, TRACE_DIR, WINDOW_DIR, Recording, read_outcomes
from .request_rows import RequestRows

__all__ = ["OUTCOME_DIR", "TRACE_DIR", "WINDOW_DIR", "Recorder", "read_outcomes"]

_LOG = logging.getLogger(__name__)

# Rows kept in memory at most; of more, new ones are not recorded and counted. Each has up to three
# events.
MAX_ROWS = 200_000
_MAX_EVENTS = 3 * MAX_ROWS
_MAX_WINDOWS = 10_000
# Time between two parts of a trace. It grows with their number, as each rewrites the manifest:
# a day makes some 4,000 parts.
_FIRST_FLUSH_S, _FLUSH_S_PER_PART, _LAST_FLUSH_S = 2.0, 0.01, 60.0

_Event = (
    tuple[Placement] | tuple[Placement, RequestEnd] | tuple[RequestFacts, Refusal, float]
)  # placed, ended, refused


class Recorder:
    """A `DispatchListener`. `start` begins to write, `close` writes what is left."""

    def __init__(
        self, directory: Path, replica_names: Sequence[str], *, max_bytes: int = 8 << 30
    ) -> None:
        """Record until the recording takes `max_bytes` on disk.

        Raises:
            ValueError: `max_bytes` is below a megabyte.
        """
        if max_bytes < 1 << 20:
            msg = f"max_bytes must be at least {1 << 20}, got {max_bytes}"
            raise ValueError(msg)
        self.directory = directory
        self.num_written = 0
        self._num_lost = 0
        self._max_bytes = max_bytes
        self._recording = Recording(directory, replica_names)
        self._rows = RequestRows(MAX_ROWS)
        self._events: deque[_Event] = deque()
        self._windows: deque[dict[str, Any]] = deque(maxlen=_MAX_WINDOWS)
        self._is_closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_full = False

    @property
    def num_dropped(self) -> int:
        """Requests that were not recorded: too many, no room on disk, or open at the end."""
        return self._num_lost + self._rows.num_dropped

    def start(self) -> None:
        """Begin to write, in a thread."""
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write all that has ended, and stop."""
        self._is_closing.set()
        if self._thread is not None:
            self._thread.join()
        self.flush(is_last=True)

    # In the path of requests.

    def on_placed(self, placement: Placement) -> None:
        """See `DispatchListener`."""
        if len(self._events) < _MAX_EVENTS:
            self._events.append((placement,))
        else:
            self._num_lost += 1

    def on_refused(self, facts: RequestFacts, refusal: Refusal, now_s: float) -> None:
        """See `DispatchListener`."""
        if len(self._events) < _MAX_EVENTS:
            self._events.append((facts, refusal, now_s))
        else:
            self._num_lost += 1

    def on_ended(self, placement: Placement, end: RequestEnd) -> None:
        """See `DispatchListener`."""
        # Always taken: its request was, and would else wait for its end.
        self._events.append((placement, end))

    def note_window(self, values: Mapping[str, Any]) -> None:
        """Note who ruled a window, and what was set; values are numbers, words and bytes."""
        self._windows.append(dict(values))

    # In the thread.

    def _run(self) -> None:
        span_s = _FIRST_FLUSH_S
        while not self._is_closing.wait(span_s):
            self.flush()
            grown_s = _FIRST_FLUSH_S + _FLUSH_S_PER_PART * self._recording.num_parts
            span_s = min(_LAST_FLUSH_S, grown_s)

    def flush(self, *, is_last: bool = False) -> None:
        """Write what has ended, in order of arrival; the last time, past what is open."""
        self._take_events()
        rows = self._rows.take(is_last=is_last)
        if is_last:
            self._num_lost += len(self._rows)
        windows = [self._windows.popleft() for _ in range(len(self._windows))]
        if self._has_no_room():
            self._num_lost += len(rows)
            return
        try:
            if windows:
                self._recording.write_windows(windows)
            if rows:
                self._recording.write(rows)
        except (OSError, TrimtabError, ValueError, pa.ArrowException) as error:
            self._num_lost += len(rows)
            _LOG.error("%d requests could not be recorded: %s", len(rows), error)
        else:
            self.num_written += len(rows)

    def _take_events(self) -> None:
        rows = self._rows
        for _ in range(len(self._events)):
            event = self._events.popleft()
            if len(event) == 1:
                rows.place(event[0])
            elif len(event) == 2:
                rows.end(*event)
            else:
                rows.refuse(*event)

    def _has_no_room(self) -> bool:
        if self._recording.num_bytes < self._max_bytes:
            return False
        if not self._is_full:
            self._is_full = True
            _LOG.error(
                "the recording in '%s' takes its %d bytes; no more is recorded",
                self.directory,
                self._max_bytes,
            )
        return True
