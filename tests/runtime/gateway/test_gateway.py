"""What a client of the gateway sees, over real sockets."""

import asyncio
import json

import pytest
from gateway_stand import (
    LAST_CHUNK,
    STREAM_HEAD,
    answer_stream,
    answer_whole,
    chunk,
    post,
    standing,
    whole_answer,
)

from trimtab.runtime.dispatcher.request import Ending, Refusal
from trimtab.runtime.gateway.config import GatewayConfig


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_a_request_is_passed_on_and_its_answer_back() -> None:
    async def run() -> None:
        async with standing(answer_whole) as stand:
            answer = await stand.exchange(
                post(headers="x-request-id: mine\r\nauthorization: s\r\n")
            )
            assert status_of(answer) == 200
            assert json.loads(body_of(answer))["id"] == "x"
            head = answer.partition(b"\r\n\r\n")[0]
            assert b"x-request-id: mine" in head
            assert b"x-trimtab-replica: replica-0" in head
            assert b"server: engine" in head
            sent = stand.engines[0].heads[0]
            assert b"authorization" not in sent
            assert b"x-request-id: mine" in sent
            end = stand.dispatcher.ends[0]
            assert (end.ending, end.status) == (Ending.FINISHED, 200)
            assert (end.input_tokens, end.output_tokens, end.cached_tokens) == (7, 3, 2)
            assert stand.dispatcher.first_tokens == 0

    asyncio.run(run())


def test_a_stream_is_passed_on_event_by_event() -> None:
    async def run() -> None:
        async with standing(answer_stream) as stand:
            answer = await stand.exchange(post({"stream": True}))
            assert b"transfer-encoding: chunked" in answer
            assert answer.count(b"data: ") == 4
            assert answer.endswith(LAST_CHUNK)
            assert stand.dispatcher.first_tokens == 1
            assert stand.dispatcher.ends[0].output_tokens == 3

    asyncio.run(run())


def test_connections_are_kept_on_both_sides() -> None:
    async def run() -> None:
        async with standing(answer_whole) as stand:
            reader, writer = await stand.connect()
            for _ in range(3):
                writer.write(post(is_last=False))
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
                await reader.readexactly(length)
            writer.close()
            assert stand.gateway.counts.num_connects == 1
            assert stand.gateway.counts.num_connections == 1

    asyncio.run(run())


def test_pipelined_requests_are_answered_in_order() -> None:
    async def run() -> None:
        async with standing(answer_whole, answer_stream) as stand:
            requests = post(headers="x-request-id: a\r\n", is_last=False)
            requests += post({"stream": True}, headers="x-request-id: b\r\n", is_last=False)
            requests += b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            answer = await stand.exchange(requests)
            first, second = answer.index(b"x-request-id: a"), answer.index(b"x-request-id: b")
            assert first < second < answer.index(b'{"status": "ok"}')

    asyncio.run(run())


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.transport.abort()


async def loading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(whole_answer(503))


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
    await reader.read(1)
    raise ConnectionError


async def stop_midway(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes
) -> None:
    writer.write(STREAM_HEAD + chunk(b'data: {"text": "one"}\n\n'))
    await writer.drain()
    await asyncio.sleep(0.02)
    writer.transport.abort()


@pytest.mark.parametrize("bad", [refuse, loading])
def test_a_replica_that_breaks_off_costs_no_request(bad) -> None:  # type: ignore[no-untyped-def]
    async def run() -> None:
        async with standing(bad, answer_whole) as stand:
            answers = [await stand.exchange(post()) for _ in range(3)]
            assert [status_of(answer) for answer in answers] == [200, 200, 200]
            assert stand.gateway.counts.num_retries >= 1
            assert stand.dispatcher.num_open == 0

    asyncio.run(run())


def test_when_all_replicas_break_off_the_client_is_told() -> None:
    async def run() -> None:
        async with standing(refuse, refuse) as stand:
            answer = await stand.exchange(post())
            assert status_of(answer) == 503
            assert json.loads(body_of(answer))["error"]["message"] == (
                "closed the connection, and no other replica can take the request"
            )
            assert stand.dispatcher.num_open == 0

    asyncio.run(run())


def test_a_stream_that_breaks_off_ends_with_an_error_event() -> None:
    async def run() -> None:
        async with standing(stop_midway) as stand:
            answer = await stand.exchange(post({"stream": True}))
            assert b'"code": "answer_cut"' in answer
            assert not answer.endswith(LAST_CHUNK)
            assert stand.dispatcher.ends[0].ending is Ending.FAILED

    asyncio.run(run())


def test_requests_without_an_answer_are_moved_from_a_silent_replica() -> None:
    async def run() -> None:
        async with standing(hang, answer_whole) as stand:
            waiting = asyncio.create_task(stand.exchange(post()))
            while not stand.engines[0].heads:
                await asyncio.sleep(0.001)
            assert stand.gateway.evict(0, "fell silent") == 1
            assert status_of(await waiting) == 200
            assert stand.gateway.counts.num_evicted == 1

    asyncio.run(run())


def test_a_client_that_goes_away_frees_its_replica() -> None:
    async def run() -> None:
        async with standing(hang) as stand:
            _, writer = await stand.connect()
            writer.write(post())
            while not stand.engines[0].heads:
                await asyncio.sleep(0.001)
            writer.transport.abort()
            while not stand.dispatcher.ends:
                await asyncio.sleep(0.001)
            assert stand.dispatcher.ends[0].ending is Ending.ABORTED
            assert stand.gateway.counts.num_aborts == 1

    asyncio.run(run())


def test_a_deadline_that_passes_is_504() -> None:
    async def run() -> None:
        async with standing(hang) as stand:
            answer = await stand.exchange(post({"timeout_s": 0.02}))
            assert status_of(answer) == 504
            assert json.loads(body_of(answer))["error"]["code"] == "deadline_exceeded"
            assert stand.dispatcher.ends[0].ending is Ending.TIMED_OUT

    asyncio.run(run())


def test_a_refusal_says_why_and_when_to_come_back() -> None:
    async def run() -> None:
        async with standing(answer_whole) as stand:
            stand.dispatcher.refusal = Refusal(
                status=429, code="rejected-saturated", message="too busy", retry_after_s=1.0
            )
            answer = await stand.exchange(post())
            assert status_of(answer) == 429
            assert b"retry-after: 1\r\n" in answer
            assert b"x-llm-d-request-dropped-reason: rejected-saturated\r\n" in answer
            assert json.loads(body_of(answer))["error"]["type"] == "rate_limit_error"

    asyncio.run(run())


def test_an_old_client_gets_no_chunks() -> None:
    async def run() -> None:
        async with standing(answer_stream) as stand:
            request = post({"stream": True}).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
            answer = await stand.exchange(request)
            assert b"transfer-encoding" not in answer
            assert body_of(answer).startswith(b"data: ")
            assert body_of(answer).endswith(b"data: [DONE]\n\n")

    asyncio.run(run())


def test_draining_finishes_what_is_open() -> None:
    async def run() -> None:
        async with standing(hang, answer_whole) as stand:
            waiting = asyncio.create_task(stand.exchange(post()))
            while not stand.engines[0].heads:
                await asyncio.sleep(0.001)
            port = stand.gateway.port
            draining = asyncio.create_task(stand.gateway.drain(60.0))
            await asyncio.sleep(0.01)
            with pytest.raises(ConnectionError):
                await asyncio.open_connection("127.0.0.1", port)
            stand.gateway.evict(0, "fell silent")
            assert status_of(await waiting) == 200
            assert await draining

    asyncio.run(run())


def test_limits_are_positive() -> None:
    with pytest.raises(ValueError, match="max_body_bytes must be above 0, got 0"):
        GatewayConfig(max_body_bytes=0)
