"""Heads that come again: recognised byte for byte, and never taken for what a parser would not."""

import asyncio
import json

import pytest
from gateway_stand import answer_whole, post, standing, whole_answer
from hypothesis import given
from hypothesis import strategies as st

from trimtab.runtime.gateway.config import GatewayConfig
from trimtab.runtime.gateway.known_head import KnownHead

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nContent-Length: %d\r\naccept: */*\r\n\r\n"


def message(body: bytes) -> bytes:
    """Return a request with a body."""
    return HEAD % len(body) + body


def known_of(body: bytes = b"{}") -> KnownHead:
    """Return the head of such a request, as remembered."""
    known = KnownHead.of(message(body), len(body))
    assert known is not None
    return known


@given(st.binary(max_size=300))
def test_the_body_behind_a_known_head_is_found_whatever_it_holds(body: bytes) -> None:
    assert known_of().body_of(message(body)) == body


@given(st.binary(max_size=60), st.integers(0, 200), st.binary(min_size=1, max_size=8))
def test_any_other_byte_in_the_head_makes_it_unknown(body: bytes, at: int, put: bytes) -> None:
    whole = message(body)
    head_bytes = len(whole) - len(body)
    at = min(at, head_bytes - len(put))
    other = whole[:at] + put + whole[at + len(put) :]
    found = known_of().body_of(other)
    # A length may be written in other digits, as long as it is the body's.
    assert found in (None, body)
    if found is None:
        return
    changed = [i for i in range(head_bytes) if other[i] != whole[i]]
    assert all(chr(other[i]).isdigit() and chr(whole[i]).isdigit() for i in changed)


@pytest.mark.parametrize(
    "data",
    [
        message(b"{}")[:-1],
        message(b"{}") + b"P",
        HEAD % 3 + b"{}",
        (HEAD % 2).replace(b": 2", b": +2") + b"{}",
        (HEAD % 2).replace(b": 2", b": 2 ") + b"{}",
        (HEAD % 2).replace(b": 2", b": ") + b"{}",
        (HEAD % 2).replace(b": 2", b": 00000000002") + b"{}",
        (HEAD % 2).replace(b"accept", b"transfer-encoding") + b"{}",
        b"",
    ],
)
def test_what_is_not_whole_and_alone_goes_to_the_parser(data: bytes) -> None:
    assert known_of().body_of(data) is None


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\nhost: x\r\n\r\n",
        message(b"{}") + message(b"{}"),
        b"POST / HTTP/1.1\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\n{}",
        b"GET / HTTP/1.1\r\nx: content-length: 2\r\n\r\n{}",
    ],
)
def test_heads_without_one_length_are_not_remembered(data: bytes) -> None:
    assert KnownHead.of(data, 2) is None


async def answer_of(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return head and body of the next answer."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60.0)
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
    return head, await reader.readexactly(length)


def test_requests_with_one_head_keep_bodies_and_ids_apart() -> None:
    async def run() -> None:
        async with standing(answer_whole) as stand:
            reader, writer = await stand.connect()
            ids = set()
            for number in range(5):
                writer.write(post({"prompt": "x" * number}, headers="x-a: 1\r\n", is_last=False))
                head, body = await answer_of(reader)
                ids.add(head.partition(b"x-request-id: ")[2].partition(b"\r")[0])
                assert json.loads(body)["id"] == "x"
            writer.close()
            engine = stand.engines[0]
            assert [json.loads(each)["prompt"] for each in engine.bodies] == [
                "x" * number for number in range(5)
            ]
            assert len(ids) == 5
            for head, body in zip(engine.heads, engine.bodies, strict=True):
                assert b"x-a: 1\r\n" in head
                assert head.lower().count(b"content-length") == 1
                assert b"content-length: %d\r\n" % len(body) in head
            assert stand.gateway.counts.num_requests == 5

    asyncio.run(run())


def test_another_head_on_the_same_connection_counts() -> None:
    async def run() -> None:
        async with standing(answer_whole) as stand:
            reader, writer = await stand.connect()
            for headers in ("x-a: 1\r\n", "x-a: 1\r\n", "x-a: 2\r\n", "x-a: 2\r\n", "x-b: 1\r\n"):
                writer.write(post(headers=headers, is_last=False))
                await answer_of(reader)
            writer.write(post(path="/v1/none", is_last=False))
            head, _ = await answer_of(reader)
            assert head.startswith(b"HTTP/1.1 404")
            writer.close()
            seen = [head.partition(b"x-")[2][:4] for head in stand.engines[0].heads]
            assert seen == [b"a: 1", b"a: 1", b"a: 2", b"a: 2", b"b: 1"]

    asyncio.run(run())


def test_a_request_hidden_in_the_body_of_another_stays_its_body() -> None:
    async def run() -> None:
        async with standing(answer_whole) as stand:
            reader, writer = await stand.connect()
            plain = post(is_last=False)
            for _ in range(2):
                writer.write(plain)
                await answer_of(reader)
            # The rest of this body looks like a whole request with the head that is known.
            inner = json.dumps({"model": "tiny", "prompt": "y"}).encode()
            length = len(inner) + len(plain)
            head = plain.partition(b"content-length")[0] + b"content-length: %d\r\n\r\n" % length
            writer.write(plain + head + inner)
            await answer_of(reader)
            await asyncio.sleep(0.05)
            writer.write(plain)
            answer, _ = await answer_of(reader)
            assert answer.startswith(b"HTTP/1.1 400")
            writer.close()
            assert len(stand.engines[0].bodies) == 3

    asyncio.run(run())


def test_limits_hold_behind_a_known_head() -> None:
    async def run() -> None:
        config = GatewayConfig(sweep_s=0.01, max_body_bytes=500)
        async with standing(answer_whole, config=config) as stand:
            reader, writer = await stand.connect()
            for _ in range(2):
                writer.write(post(is_last=False))
                await answer_of(reader)
            writer.write(post({"prompt": "x" * 600}, is_last=False))
            head, _ = await answer_of(reader)
            assert head.startswith(b"HTTP/1.1 413")
            writer.close()

    asyncio.run(run())


def test_a_part_of_a_request_behind_another_is_waited_for_in_time_only() -> None:
    async def run() -> None:
        config = GatewayConfig(sweep_s=0.01, head_timeout_s=0.05)
        async with standing(answer_whole, config=config) as stand:
            answer = await stand.exchange(post(is_last=False) + b"POST /v1/compl")
            assert b"HTTP/1.1 408" in answer

    asyncio.run(run())


def test_answers_with_one_head_differ_in_length_and_content() -> None:
    contents = [b'{"n": %d, "text": "%s"}' % (n, b"a" * n) for n in range(6)]

    async def run() -> None:
        left = list(contents)

        async def handler(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes
        ) -> None:
            content = left.pop(0)
            status = 400 if content == contents[4] else 200
            whole = whole_answer(status, content)
            if content == contents[3]:
                # In two pieces.
                writer.write(whole[:-5])
                await writer.drain()
                await asyncio.sleep(0.02)
                whole = whole[-5:]
            writer.write(whole)

        async with standing(handler) as stand:
            reader, writer = await stand.connect()
            for number, content in enumerate(contents):
                writer.write(post(is_last=False))
                head, body = await answer_of(reader)
                assert body == content
                assert head.startswith(b"HTTP/1.1 400" if number == 4 else b"HTTP/1.1 200")
                assert head.count(b"content-length") == 1
                assert b"x-trimtab-replica: replica-0\r\n" in head
            writer.close()
            assert stand.gateway.counts.num_connects == 1
            assert len(stand.dispatcher.ends) == 6

    asyncio.run(run())
