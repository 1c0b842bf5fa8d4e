"""Carries frames between processes of one machine through a Unix socket.

Frames go to who subscribed in this process, and those of chosen subjects to the other end as well.
One end listens and one or more connect, again and again if need be. Nobody waits for anybody: what
cannot be sent at once is dropped and counted, since a newer frame follows.

Does not know: what is in a frame.
"""

import asyncio
import contextlib
import logging
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .frames import MAX_FRAME_BYTES
from .reasons import Counts, Reason
from .transport import Inbox, InProcessTransport, check_pattern, check_subject, matches

_LOG = logging.getLogger(__name__)
_HEAD: Final = struct.Struct("!IH")  # bytes of the body, bytes of the subject
_MAX_SUBJECT_BYTES: Final = 1024
_MAX_UNSENT_BYTES: Final = 4 * MAX_FRAME_BYTES
_RETRY_S: Final = 0.2


class SocketTransport:
    """One end; made by `listen` or `connect`, used from one event loop."""

    def __init__(self, path: Path, shared: Sequence[str]) -> None:
        """Frames of subjects that match one of the `shared` patterns go to the other end too."""
        for pattern in shared:
            check_pattern(pattern)
        self.num_connections = 0
        """Connections that were made so far."""
        self._path = path
        self._shared = [pattern.split(".") for pattern in shared]
        self._local = InProcessTransport()
        self.counts: Counts = self._local.counts
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @classmethod
    async def listen(cls, path: Path, shared: Sequence[str]) -> "SocketTransport":
        """Listen on a path; a socket that an earlier process left there is replaced.

        Raises:
            OSError: nobody can listen there.
        """
        transport = cls(path, shared)
        path.unlink(missing_ok=True)
        transport._server = await asyncio.start_unix_server(transport._serve, path)
        path.chmod(0o600)
        return transport

    @classmethod
    async def connect(cls, path: Path, shared: Sequence[str]) -> "SocketTransport":
        """Connect to who listens on a path, now or as soon as somebody does."""
        transport = cls(path, shared)
        task = asyncio.create_task(transport._stay_connected())
        transport._tasks.add(task)
        return transport

    @property
    def is_connected(self) -> bool:
        """Whether somebody is at the other end."""
        return bool(self._writers)

    async def publish(self, subject: str, body: bytes) -> None:
        """Hand a frame to who subscribed here and, if it is shared, to the other end."""
        await self._local.publish(subject, body)
        tokens = subject.split(".")
        if len(body) > MAX_FRAME_BYTES or not any(matches(p, tokens) for p in self._shared):
            return
        name = subject.encode()
        data = _HEAD.pack(len(body), len(name)) + name + body
        for writer in list(self._writers):
            if writer.transport.get_write_buffer_size() > _MAX_UNSENT_BYTES:
                self.counts.add(Reason.DROPPED)
            elif not writer.is_closing():
                writer.write(data)
        if not self._writers:
            self.counts.add(Reason.DROPPED)

    async def subscribe(self, pattern: str, max_frames: int) -> Inbox:
        """Return an inbox for what is published here, or shared at the other end, from now on."""
        return await self._local.subscribe(pattern, max_frames)

    async def close(self) -> None:
        """End all connections and close every inbox."""
        for task in list(self._tasks):
            task.cancel()
        for writer in list(self._writers):
            # Who does not read would keep what is unsent, and this end, waiting.
            writer.transport.abort()
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Transports close in the next turn of the loop.
        await asyncio.sleep(0)
        await self._local.close()

    async def _stay_connected(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_unix_connection(self._path)
                await self._take(reader, writer)
            await asyncio.sleep(_RETRY_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(asyncio.CancelledError):
            await self._take(reader, writer)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take frames until the connection ends, or says what no frame can be."""
        self.num_connections += 1
        self._writers.add(writer)
        try:
            while True:
                num_body, num_subject = _HEAD.unpack(await reader.readexactly(_HEAD.size))
                if num_body > MAX_FRAME_BYTES or num_subject > _MAX_SUBJECT_BYTES:
                    self.counts.add(Reason.TOO_LARGE)
                    return
                name = await reader.readexactly(num_subject)
                body = await reader.readexactly(num_body)
                try:
                    subject = name.decode("ascii")
                    check_subject(subject)
                except ValueError:
                    self.counts.add(Reason.MALFORMED)
                    return
                await self._local.publish(subject, body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()
