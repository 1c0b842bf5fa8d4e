"""Token counts read off an answer's bytes, without decoding it.

Engines report `usage` as JSON at the end of an answer or in the last event of a stream.

Does not know: the rest of an answer.
"""

import re

_COUNTS = re.compile(rb'"(completion|prompt|cached)_tokens"\s*:\s*(\d+)')
_USAGE = b'"usage"'
_EVENT = b"data:"
_DONE = b"data: [DONE]"
# The usage object with its details, and what engines write after it.
_TAIL_BYTES = 4096


class AnswerUsage:
    """Counts of one answer, taken in piece by piece."""

    __slots__ = ("_tail", "cached_tokens", "input_tokens", "num_events", "output_tokens")

    def __init__(self) -> None:
        self.num_events = 0
        """Events of a stream, without the one that only ends it."""
        self._tail = b""
        self.output_tokens: int | None = None
        self.input_tokens: int | None = None
        self.cached_tokens: int | None = None

    def take_events(self, piece: bytes) -> None:
        """Take a piece of a stream; an event that two pieces share is counted by its beginning."""
        self.num_events += piece.count(_EVENT)
        if _DONE in piece:
            self.num_events -= 1
        if b"completion_tokens" in piece:
            self._read(piece)

    def take_part(self, piece: bytes) -> None:
        """Take a piece of an answer that is no stream; more is to come."""
        self._tail = (self._tail + piece[-_TAIL_BYTES:])[-_TAIL_BYTES:]

    def take_body(self, piece: bytes) -> None:
        """Take the last piece of an answer that is no stream, or the whole."""
        self._read(self._tail + piece if self._tail else piece)

    def _read(self, data: bytes) -> None:
        # A text of the answer has its quotes escaped, so what is found is the object itself.
        start = max(len(data) - _TAIL_BYTES, 0)
        found = _COUNTS.findall(data, max(data.rfind(_USAGE), start)) or _COUNTS.findall(
            data, start
        )
        for name, number in found:
            if name == b"completion":
                self.output_tokens = int(number)
            elif name == b"prompt":
                self.input_tokens = int(number)
            else:
                self.cached_tokens = int(number)

    @property
    def best_output_tokens(self) -> int:
        """As the engine counts them, else events of the stream."""
        return self.num_events if self.output_tokens is None else self.output_tokens
