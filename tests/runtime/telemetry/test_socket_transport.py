"""Frames between two processes of one machine: across, in order, bounded, and after a break."""

import asyncio
import socket
import stat
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from trimtab.runtime.telemetry import subjects
from trimtab.runtime.telemetry.frames import MAX_FRAME_BYTES
from trimtab.runtime.telemetry.reasons import Reason
from trimtab.runtime.telemetry.socket_transport import SocketTransport
from trimtab.runtime.telemetry.transport import Inbox

RACK = subjects.rack("r1")
KEY = subjects.key_request("r1")
SHARED = (subjects.rack(subjects.ANY), subjects.key_request(subjects.ANY))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.002)


async def receive(inbox: Inbox, num_frames: int) -> list[bytes]:
    bodies: list[bytes] = []
    async with asyncio.timeout(60):
        while len(bodies) < num_frames:
            await inbox.wait()
            bodies += inbox.take()
    return bodies


def on_both_ends(
    path: Path, check: Callable[[SocketTransport, SocketTransport], Awaitable[None]]
) -> None:
    """Run a check on the end that listens and the one that connects."""

    async def main() -> None:
        listener = await SocketTransport.listen(path, SHARED)
        client = await SocketTransport.connect(path, SHARED)
        try:
            await until(lambda: listener.is_connected and client.is_connected)
            await check(listener, client)
        finally:
            await client.close()
            await listener.close()

    asyncio.run(main())


def test_shared_frames_cross_both_ways_in_order(tmp_path: Path) -> None:
    async def check(listener: SocketTransport, client: SocketTransport) -> None:
        racks = await listener.subscribe(subjects.rack(subjects.ANY), 1000)
        keys = await client.subscribe(KEY, 10)
        sent = [str(i).encode() for i in range(500)]
        for body in sent:
            await client.publish(RACK, body)
        await listener.publish(KEY, b"please")
        assert await receive(racks, 500) == sent
        assert await receive(keys, 1) == [b"please"]
        assert listener.counts.total == client.counts.total == 0

    on_both_ends(tmp_path / "hub.sock", check)


def test_other_frames_stay_at_their_end(tmp_path: Path) -> None:
    async def check(listener: SocketTransport, client: SocketTransport) -> None:
        far = await listener.subscribe("trimtab.>", 10)
        near = await client.subscribe(subjects.sample("r1"), 10)
        await client.publish(subjects.sample("r1"), b"of a probe")
        await client.publish(RACK, b"summed up")
        assert await receive(near, 1) == [b"of a probe"]
        assert await receive(far, 1) == [b"summed up"]

    on_both_ends(tmp_path / "hub.sock", check)


def test_who_comes_later_is_found_and_who_comes_back_too(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"

    async def main() -> None:
        client = await SocketTransport.connect(path, SHARED)
        await client.publish(RACK, b"to nobody")
        assert client.counts.by_reason[Reason.DROPPED] == 1
        for number in range(2):
            listener = await SocketTransport.listen(path, SHARED)
            inbox = await listener.subscribe(RACK, 10)
            await until(lambda listener=listener: listener.is_connected)
            await until(lambda: client.is_connected)
            await client.publish(RACK, b"%d" % number)
            assert await receive(inbox, 1) == [b"%d" % number]
            await listener.close()
            await until(lambda: not client.is_connected)
        assert client.num_connections == 2
        await client.close()

    asyncio.run(main())


def test_only_its_owner_may_connect_and_nothing_is_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    path.write_text("left there by an earlier process")

    async def check(listener: SocketTransport, client: SocketTransport) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    on_both_ends(path, check)
    assert not path.exists()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (struct.pack("!IH", MAX_FRAME_BYTES + 1, 5), Reason.TOO_LARGE),
        (struct.pack("!IH", 1, 2000), Reason.TOO_LARGE),
        (struct.pack("!IH", 1, 4) + b"a..bx", Reason.MALFORMED),
        (struct.pack("!IH", 1, 2) + b"\xff\xfex", Reason.MALFORMED),
    ],
)
def test_who_talks_nonsense_is_cut_off_and_others_go_on(
    tmp_path: Path, data: bytes, reason: Reason
) -> None:
    path = tmp_path / "hub.sock"

    async def check(listener: SocketTransport, client: SocketTransport) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(data)
        async with asyncio.timeout(60):
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        assert listener.counts.by_reason[reason] == 1
        inbox = await listener.subscribe(RACK, 10)
        await client.publish(RACK, b"all the same")
        assert await receive(inbox, 1) == [b"all the same"]

    on_both_ends(path, check)


def test_a_frame_that_is_cut_off_is_not_delivered(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"

    async def check(listener: SocketTransport, client: SocketTransport) -> None:
        inbox = await listener.subscribe(subjects.rack(subjects.ANY), 10)
        _, writer = await asyncio.open_unix_connection(path)
        await until(lambda: listener.num_connections == 2)
        writer.write(struct.pack("!IH", 100, len(RACK)) + RACK.encode() + b"half")
        writer.close()
        await writer.wait_closed()
        await client.publish(RACK, b"whole")
        assert await receive(inbox, 1) == [b"whole"]

    on_both_ends(path, check)


def test_who_does_not_read_costs_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"

    async def main() -> None:
        listener = await SocketTransport.listen(path, SHARED)
        deaf = socket.socket(socket.AF_UNIX)
        deaf.connect(str(path))
        await until(lambda: listener.is_connected)
        frame = bytes(MAX_FRAME_BYTES)
        for _ in range(20):
            await listener.publish(RACK, frame)
        dropped = listener.counts.by_reason[Reason.DROPPED]
        assert 10 <= dropped < 20
        await listener.close()
        deaf.close()

    asyncio.run(main())
