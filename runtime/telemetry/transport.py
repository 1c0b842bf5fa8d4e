"""How frames travel: subjects are published to, patterns are subscribed to, queues are bounded.

Subjects are NATS's: tokens with dots between; in a pattern `*` stands for any one token and a last
`>` for one or more. Back-pressure never blocks a publisher: the oldest frames of a full inbox are
dropped and counted, since the newest telemetry is worth the most.

Does not know: what is in a frame (`frames.py`), or which subjects there are (`subjects.py`).
Source of the rules of subjects: https://docs.nats.io/nats-concepts/subjects
"""

import asyncio
import re
from collections import deque
from typing import Final, Protocol

from .frames import MAX_FRAME_BYTES
from .reasons import Counts, Reason

_MAX_ROUTES: Final = 65_536
"""Subjects whose inboxes are remembered; beyond, all are looked up anew."""
_BAD_SUBJECT: Final = re.compile(r"^$|^\.|\.$|\.\.|\s")


class Inbox:
    """A bounded queue of frames for one subscriber; used from one event loop."""

    def __init__(self, max_frames: int, max_bytes: int = 16 * MAX_FRAME_BYTES) -> None:
        if max_frames < 1:
            msg = f"max_frames must be at least 1, got {max_frames}"
            raise ValueError(msg)
        self._bodies: deque[bytes] = deque()
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._arrival = asyncio.Event()
        self.num_dropped = 0
        """Frames dropped because the inbox was full."""
        self.is_closed = False

    def __len__(self) -> int:
        return len(self._bodies)

    def put(self, body: bytes) -> None:
        """Queue a frame, drop the oldest beyond the bounds, wake who waits."""
        if self.is_closed:
            self.num_dropped += 1
            return
        self._bodies.append(body)
        self._num_bytes += len(body)
        while len(self._bodies) > self._max_frames or self._num_bytes > self._max_bytes:
            self._num_bytes -= len(self._bodies.popleft())
            self.num_dropped += 1
        self._arrival.set()

    def take(self) -> list[bytes]:
        """Return all frames that are queued, oldest first, without waiting."""
        bodies = list(self._bodies)
        self._bodies.clear()
        self._num_bytes = 0
        if not self.is_closed:
            self._arrival.clear()
        return bodies

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until a frame is queued; return whether one is.

        Returns at once, False, when the inbox is closed and empty: ask `is_closed`.
        """
        if not self._bodies and not self.is_closed:
            self._arrival.clear()  # it is left set by frames that were dropped again
            try:
                async with asyncio.timeout(timeout_s):
                    await self._arrival.wait()
            except TimeoutError:
                return False
        return bool(self._bodies)

    def close(self) -> None:
        """Take no more frames, and wake who waits; what is queued can still be taken."""
        self.is_closed = True
        self._arrival.set()


class Transport(Protocol):
    """Carries frames from publishers to subscribers, at most once, in order for a publisher."""

    counts: Counts
    """Frames that `publish` did not send: TOO_LARGE, or DROPPED (link down, full or closed)."""

    async def publish(self, subject: str, body: bytes) -> None:
        """Send a frame to all who subscribed to a pattern that matches; never waits for them.

        Raises:
            ValueError: the subject has wildcards, white space or empty tokens.
        """

    async def subscribe(self, pattern: str, max_frames: int) -> Inbox:
        """Return an inbox that gets what is published from then on.

        Raises:
            ValueError: the pattern is none.
        """

    async def close(self) -> None:
        """Send and take no more."""


class InProcessTransport:
    """Carries frames between the parts of one process; used from one event loop."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._subscriptions: list[tuple[list[str], Inbox]] = []
        self._routes: dict[str, list[Inbox]] = {}
        self._is_closed = False

    async def publish(self, subject: str, body: bytes) -> None:
        """Put the frame into every inbox whose pattern matches."""
        inboxes = self._routes.get(subject)
        if inboxes is None:
            inboxes = self._route(subject)
        if len(body) > MAX_FRAME_BYTES:
            self.counts.add(Reason.TOO_LARGE)
        elif self._is_closed:
            self.counts.add(Reason.DROPPED)
        else:
            for inbox in inboxes:
                inbox.put(body)

    async def subscribe(self, pattern: str, max_frames: int) -> Inbox:
        """Return an inbox for all that is published to subjects of the pattern."""
        check_pattern(pattern)
        inbox = Inbox(max_frames)
        self._subscriptions.append((pattern.split("."), inbox))
        self._routes.clear()
        return inbox

    async def close(self) -> None:
        """Close every inbox."""
        self._is_closed = True
        for _, inbox in self._subscriptions:
            inbox.close()

    def _route(self, subject: str) -> list[Inbox]:
        check_subject(subject)
        tokens = subject.split(".")
        inboxes = [inbox for pattern, inbox in self._subscriptions if matches(pattern, tokens)]
        if len(self._routes) >= _MAX_ROUTES:
            self._routes.clear()
        self._routes[subject] = inboxes
        return inboxes


def matches(pattern: list[str], subject: list[str]) -> bool:
    """Say whether the tokens of a subject match those of a pattern."""
    if pattern[-1] == ">":
        pattern = pattern[:-1]
        if len(subject) <= len(pattern):
            return False
    elif len(subject) != len(pattern):
        return False
    return all(want in ("*", token) for want, token in zip(pattern, subject, strict=False))


def check_subject(subject: str) -> None:
    """Check that frames can be published to a subject.

    Raises:
        ValueError: it has wildcards, white space or empty tokens.
    """
    if _BAD_SUBJECT.search(subject) or "*" in subject or ">" in subject:
        msg = (
            f"subject must be tokens with dots between, without wildcards or white space, "
            f"got {subject!r}; build it with subjects.py"
        )
        raise ValueError(msg)


def check_pattern(pattern: str) -> None:
    """Check that a pattern can be subscribed to.

    Raises:
        ValueError: white space, empty tokens, a wildcard inside a token, or `>` before the end.
    """
    tokens = pattern.split(".")
    is_misplaced = any(
        (len(token) > 1 and ("*" in token or ">" in token))
        or (token == ">" and i < len(tokens) - 1)
        for i, token in enumerate(tokens)
    )
    if _BAD_SUBJECT.search(pattern) or is_misplaced:
        msg = (
            f"pattern must be tokens with dots between, * for one token or > for the rest, "
            f"got {pattern!r}; build it with subjects.py"
        )
        raise ValueError(msg)
