"""A proxy that does nothing but pass bytes, on raw protocols and uvloop: the floor.

Run: python raw_proxy.py PORT ENGINE_PORT...
"""

import asyncio
import sys
from itertools import cycle

import httptools
import uvloop


class Upstream(asyncio.Protocol):
    """A connection to an engine."""

    def connection_made(self, transport) -> None:
        """See `asyncio.Protocol`."""
        self.transport, self.client = transport, None

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self.client.transport.write(data)
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        """See httptools."""
        self.client = None
        idle[self.port].append(self)


class Client(asyncio.Protocol):
    """A connection of a client."""

    def connection_made(self, transport) -> None:
        """See `asyncio.Protocol`."""
        self.transport, self.data = transport, []
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self.data.append(data)
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        """See httptools."""
        data, self.data = b"".join(self.data), []
        port = next(turn)
        if idle[port]:
            self.send(idle[port].pop(), data)
        else:
            asyncio.get_running_loop().create_task(self.connect(port, data))

    async def connect(self, port: int, data: bytes) -> None:
        """Send a request over a new connection."""
        loop = asyncio.get_running_loop()
        _, upstream = await loop.create_connection(Upstream, "127.0.0.1", port)
        upstream.port = port
        self.send(upstream, data)

    def send(self, upstream: Upstream, data: bytes) -> None:
        """Send a request."""
        upstream.client = self
        upstream.parser = httptools.HttpResponseParser(upstream)
        upstream.transport.write(data)


async def main() -> None:
    """Pass bytes until killed."""
    server = await asyncio.get_running_loop().create_server(Client, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


ports = [int(port) for port in sys.argv[2:]]
turn, idle = cycle(ports), {port: [] for port in ports}
uvloop.run(main())
