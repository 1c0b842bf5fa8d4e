"""What is sent in one turn of the loop goes out in order, and nobody's bytes hang on another's."""

import asyncio

import pytest

from trimtab.runtime.gateway.outbox import Outbox


class Wire(asyncio.Transport):
    """A transport that remembers, or breaks."""

    def __init__(self, said: list[tuple[str, bytes]], name: str) -> None:
        super().__init__()
        self.said, self.name = said, name
        self.is_broken = self.is_closed = self.is_aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.is_broken:
            msg = "the handler is closed"
            raise RuntimeError(msg)
        self.said.append((self.name, bytes(data)))

    def is_closing(self) -> bool:
        return self.is_closed

    def abort(self) -> None:
        self.is_aborted = True


def test_bytes_leave_at_the_end_of_the_turn_in_order() -> None:
    async def run() -> None:
        said: list[tuple[str, bytes]] = []
        outbox, a, b = Outbox(), Wire(said, "a"), Wire(said, "b")
        outbox.put(a, b"1")
        outbox.put(b, b"2")
        outbox.put(a, b"3")
        assert said == []
        await asyncio.sleep(0)
        assert said == [("a", b"1"), ("b", b"2"), ("a", b"3")]
        outbox.put(b, b"4")
        outbox.flush()
        outbox.put(b, b"5")
        await asyncio.sleep(0)
        assert said[3:] == [("b", b"4"), ("b", b"5")]

    asyncio.run(run())


def test_a_connection_that_breaks_keeps_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        said: list[tuple[str, bytes]] = []
        outbox = Outbox()
        broken, closed, whole = Wire(said, "broken"), Wire(said, "closed"), Wire(said, "whole")
        broken.is_broken = closed.is_closed = True
        for wire in (broken, closed, whole):
            outbox.put(wire, b"x")
        await asyncio.sleep(0)
        assert said == [("whole", b"x")]
        assert broken.is_aborted
        assert not closed.is_aborted

    asyncio.run(run())
    assert "a connection cannot be written to" in caplog.text
