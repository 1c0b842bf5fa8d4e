"""Carries frames between machines through a NATS server.

At most once: a frame that cannot be sent now (no connection, or too much unsent) is dropped and
counted, since a newer one follows within a tenth of a second. A connection that ends for whatever
reason is replaced by a new one with the same subscriptions.

Does not know: what is in a frame, or how the server is run (`nats_server.py`).
Source: https://docs.nats.io/reference/nats-protocol/nats-protocol
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from ...traces.errors import MissingExtraError
from .frames import MAX_FRAME_BYTES
from .nats_server import NatsServer
from .reasons import Counts, Reason
from .transport import Inbox, check_pattern, check_subject

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

__all__ = ["NatsServer", "NatsTransport"]

_LOG = logging.getLogger(__name__)
_MAX_UNSENT_BYTES: Final = 4 * MAX_FRAME_BYTES
_RETRY_S: Final = 0.2
"""Between looks at the connection, and between attempts to make a new one."""
_PING_PERIOD_S: Final = 2
"""The server is asked whether it is there; two silences end the connection."""


class NatsTransport:
    """A connection to a NATS server; made by `connect`, used from one event loop."""

    def __init__(self, url: str, client: "Client") -> None:
        self.counts = Counts()
        self.num_reconnects = 0
        """Connections that were lost and replaced; the server ends one that reads too slowly."""
        self._url = url
        self._client = client
        self._subscriptions: list[tuple[str, Inbox]] = []
        self._keeper = asyncio.create_task(self._keep_connected())

    @classmethod
    async def connect(cls, url: str, timeout_s: float = 5.0) -> "NatsTransport":
        """Connect to a server such as `nats://127.0.0.1:4222`.

        Raises:
            MissingExtraError: nats-py is not installed.
            ConnectionError: no server answers there in time.
        """
        return cls(url, await _open(url, timeout_s))

    @property
    def is_connected(self) -> bool:
        """Whether frames can be sent right now."""
        return bool(self._client.is_connected)

    async def publish(self, subject: str, body: bytes) -> None:
        """Hand the frame to the connection, or drop and count it; never waits for the network."""
        import nats.errors

        check_subject(subject)
        if len(body) > MAX_FRAME_BYTES:
            self.counts.add(Reason.TOO_LARGE)
            return
        client = self._client
        if not client.is_connected or client.pending_data_size > _MAX_UNSENT_BYTES:
            self.counts.add(Reason.DROPPED)
            return
        try:
            await client.publish(subject, body)
        except nats.errors.MaxPayloadError:  # the server takes less than we do
            self.counts.add(Reason.TOO_LARGE)
        except (nats.errors.Error, OSError):
            self.counts.add(Reason.DROPPED)

    async def subscribe(self, pattern: str, max_frames: int) -> Inbox:
        """Return an inbox; the server knows of it, unless the connection is down at the time."""
        import nats.errors

        check_pattern(pattern)
        inbox = Inbox(max_frames)
        self._subscriptions.append((pattern, inbox))
        if self.is_connected:
            try:
                await _subscribe(self._client, pattern, inbox)
                # the library writes the first one's PING ahead of the subscription that is pending
                await self._client.flush()
                await self._client.flush()
            except (nats.errors.Error, OSError) as error:
                _LOG.warning("subscription to %s waits for a new connection: %s", pattern, error)
                await _close(self._client)
        return inbox

    async def close(self) -> None:
        """Send what is unsent, close the connection and every inbox."""
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)
        await _close(self._client)
        for _, inbox in self._subscriptions:
            inbox.close()

    async def _keep_connected(self) -> None:
        """Replace a connection that ended.

        The library's own reconnecting is off: it gives up on some errors that a server sends (a
        slow consumer among them), and keeps unsent frames that are stale by then.
        """
        import nats.errors

        while True:
            await asyncio.sleep(_RETRY_S)
            if self._client.is_closed:
                try:
                    await self._reconnect()
                except (nats.errors.Error, OSError) as error:
                    _LOG.info("%s", error)

    async def _reconnect(self) -> None:
        client = await _open(self._url, timeout_s=5.0)
        known = list(self._subscriptions)
        self._client = client  # subscriptions made from here on go to it directly
        self.num_reconnects += 1
        for pattern, inbox in known:
            await _subscribe(client, pattern, inbox)
        _LOG.warning("connected to %s again, with %d subscriptions", self._url, len(known))


async def _open(url: str, timeout_s: float) -> "Client":
    """Return a new connection."""
    try:
        import nats.errors
        from nats.aio.client import Client
    except ImportError:
        msg = "telemetry across machines needs nats-py: pip install 'trimtab[cluster]'"
        raise MissingExtraError(msg) from None

    client = Client()
    try:
        async with asyncio.timeout(timeout_s):
            await client.connect(
                url,
                error_cb=_log_error,
                allow_reconnect=False,
                ping_interval=_PING_PERIOD_S,
                # never reached: `publish` drops before, where the library would wait
                pending_size=_MAX_UNSENT_BYTES + 2 * MAX_FRAME_BYTES,
            )
    except (nats.errors.Error, OSError, TimeoutError) as error:
        await _close(client)
        msg = (
            f"no NATS server answers at {url} within {timeout_s:g} s "
            f"({client.last_error or error}); start one there, or use NatsServer on one machine"
        )
        raise ConnectionError(msg) from error
    return client


async def _subscribe(client: "Client", pattern: str, inbox: Inbox) -> None:
    async def deliver(message: "Msg") -> None:
        inbox.put(message.data)

    await client.subscribe(pattern, cb=deliver)


async def _close(client: "Client") -> None:
    try:
        await client.close()
    except OSError as error:  # unsent frames on a broken connection
        _LOG.debug("closing: %s", error)


async def _log_error(error: Exception) -> None:
    _LOG.debug("NATS: %s: %s", type(error).__name__, error)
