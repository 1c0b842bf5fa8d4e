"""Mishaps on either side of the gateway: none of them costs another request, or is left open."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator

import pytest
from gateway_stand import (
    LAST_CHUNK,
    STREAM_HEAD,
    USAGE,
    Handler,
    TurnDispatcher,
    answer_stream,
    answer_whole,
    chunk,
    post,
    standing,
    whole_answer,
)

from trimtab.runtime.dispatcher.request import Ending, Placement, RequestEnd
from trimtab.runtime.engines.live_replica import EngineKind, LiveReplica
from trimtab.runtime.gateway.client import ClientConnection
from trimtab.runtime.gateway.config import GatewayConfig
from trimtab.runtime.gateway.tenants import KeyedTenants
from trimtab.runtime.understanding.reader import Call, Reading

SMALL = GatewayConfig(sweep_s=0.01, max_body_bytes=5000, max_head_bytes=2048)
LINE = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def code_of(answer: bytes) -> object:
    return json.loads(body_of(answer))["error"]["code"]


def saying(*pieces: bytes, is_last: bool = False) -> Handler:
    """Return an engine's script: these bytes one after the other, then perhaps the end."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.002)
        if is_last:
            raise ConnectionError

    return say


# The gateway's own errors.


class BrokenReader:
    """Fails on every request."""

    def read(self, call: Call) -> Reading:
        msg = "a fault in the reader"
        raise RecursionError(msg)

    def on_placed(self, placement: Placement) -> None:
        """Learn nothing."""

    on_refused = on_ended = lambda *_: None


def test_an_error_in_understanding_is_500_and_costs_no_other_request() -> None:
    async def run() -> None:
        async with standing(answer_whole) as stand:
            sound, stand.gateway.reader = stand.gateway.reader, BrokenReader()
            answer = await stand.exchange(post())
            assert (status_of(answer), code_of(answer)) == (500, "internal_error")
            assert b"(RecursionError); its log says more" in answer
            stand.gateway.reader = sound
            assert status_of(await stand.exchange(post())) == 200
            assert stand.gateway.counts.num_faults == 1

    asyncio.run(run())


class BrokenDispatcher(TurnDispatcher):
    """Chooses, but cannot count."""

    def first_token(self, placement: Placement, now_s: float) -> None:
        raise ZeroDivisionError

    def finish(self, placement: Placement, end: RequestEnd) -> None:
        raise ZeroDivisionError


def test_errors_in_counting_leave_answers_whole() -> None:
    async def run() -> None:
        async with standing(answer_stream) as stand:
            stand.gateway.dispatcher = BrokenDispatcher(1)
            for _ in range(2):
                answer = await stand.exchange(post({"stream": True}))
                assert answer.endswith(LAST_CHUNK)
            assert stand.gateway.counts.num_faults >= 4

    asyncio.run(run())


# Clients.


def test_trailers_go_nowhere() -> None:
    async def run() -> None:
        async with standing(answer_whole) as stand:
            head = LINE + b"transfer-encoding: chunked\r\n"
            body = chunk(b'{"model": "tiny"}') + b"0\r\nx-trailer: 1\r\n\r\n"
            await stand.exchange(head + b"connection: close\r\n\r\n" + body)
            await stand.exchange(head + b"x-trailer: 2\r\nconnection: close\r\n\r\n" + body)
            first, second = stand.engines[0].heads
            assert b"x-trailer" not in first
            assert second.count(b"x-trailer") == 1
            assert b"x-trailer: 2" in second

    asyncio.run(run())


def test_trailers_without_end_are_cut_off() -> None:
    async def run() -> None:
        async with standing(answer_whole, config=SMALL) as stand:
            endless = LINE + b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"x: 1\r\n" * 4000
            answer = await stand.exchange(endless)
            assert (status_of(answer), code_of(answer)) == (413, "request_too_large")

    asyncio.run(run())


def test_a_client_that_still_sends_gets_its_refusal() -> None:
    async def run() -> None:
        async with standing(answer_whole, config=SMALL) as stand:
            reader, writer = await stand.connect()
            writer.write(LINE + b"content-length: 4000000\r\n\r\n")
            for _ in range(100):
                writer.write(b"x" * 40_000)
                await writer.drain()
            answer = await reader.read()
            assert (status_of(answer), code_of(answer)) == (413, "request_too_large")
            writer.close()

    asyncio.run(run())


def test_a_refused_client_is_listened_to_for_a_while_only() -> None:
    async def run() -> None:
        config = GatewayConfig(sweep_s=0.01, linger_timeout_s=0.02)
        async with standing(answer_whole, config=config) as stand:
            reader, writer = await stand.connect()
            writer.write(b"NONSENSE\r\n\r\n")
            assert status_of(await reader.read()) == 400
            while stand.gateway.counts.connections:
                await asyncio.sleep(0.002)
            writer.close()

    asyncio.run(run())


def test_headers_that_repeat_are_put_together_and_named_ones_stay_behind() -> None:
    async def run() -> None:
        async with standing(answer_whole) as stand:
            headers = "x-a: 1\r\nx-a: 2\r\nx-hop: secret\r\nconnection: X-Hop, close\r\n"
            assert status_of(await stand.exchange(post(headers=headers, is_last=False))) == 200
            (head,) = stand.engines[0].heads
            assert b"\r\nx-a: 1, 2\r\n" in head
            assert b"secret" not in head

    asyncio.run(run())


def test_a_head_is_answered_without_a_body() -> None:
    async def run() -> None:
        async with standing(answer_whole) as stand:
            answer = await stand.exchange(b"HEAD /healthz HTTP/1.1\r\nconnection: close\r\n\r\n")
            assert b"content-length: 16\r\n" in answer
            assert body_of(answer) == b""

    asyncio.run(run())


def test_models_are_told_to_those_with_a_key() -> None:
    async def run() -> None:
        async with standing(answer_whole, tenants=KeyedTenants([])) as stand:
            for path, status in (("/v1/models", 401), ("/healthz", 200), ("/health", 200)):
                request = f"GET {path} HTTP/1.1\r\nconnection: close\r\n\r\n".encode()
                assert status_of(await stand.exchange(request)) == status

    asyncio.run(run())


def test_requests_behind_unread_answers_wait() -> None:
    async def run() -> None:
        large = saying(whole_answer(body=b"x" * 4_000_000))
        async with standing(large) as stand:
            with contextlib.closing(small_socket()) as plain:
                plain.connect(("127.0.0.1", stand.gateway.port))
                plain.sendall(post(is_last=False) * 3)
                while not stand.gateway.counts.body_bytes_out:
                    await asyncio.sleep(0.002)
                await asyncio.sleep(0.02)
                assert len(stand.engines[0].heads) == 1
                plain.setblocking(False)
                loop, num_bytes = asyncio.get_running_loop(), 0
                while num_bytes < 12_000_000:
                    num_bytes += len(await loop.sock_recv(plain, 1 << 20))
            assert len(stand.engines[0].heads) == 3

    asyncio.run(run())


# Replicas.


def small_socket() -> socket.socket:
    """Return a client's socket that holds little of an answer."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return plain


def test_a_slow_reader_does_not_freeze_a_connection_that_others_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow: list[ClientConnection] = []

    def write(self: ClientConnection, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)
        if self in slow:
            self.pause_writing()

    async def run() -> None:
        async with standing(answer_whole) as stand:
            reader, writer = await stand.connect()
            writer.write(post(is_last=False))
            await reader.readuntil(b"\r\n\r\n")
            # Its next answer is whole when its buffer is found full.
            slow.extend(stand.gateway.clients)
            monkeypatch.setattr(ClientConnection, "write", write)
            writer.write(post(is_last=False))
            while len(stand.dispatcher.ends) < 2:
                await asyncio.sleep(0.001)
            answer = await stand.exchange(post())
            assert status_of(answer) == 200
            assert stand.gateway.counts.num_connects == 1
            writer.close()

    asyncio.run(run())


def test_a_replica_that_has_sent_no_more_than_a_head_can_be_left() -> None:
    async def run() -> None:
        async with standing(saying(STREAM_HEAD, b""), answer_stream) as stand:
            waiting = asyncio.create_task(stand.exchange(post({"stream": True})))
            await asyncio.sleep(0.02)
            assert stand.gateway.evict(0, "fell silent") == 1
            answer = await waiting
            assert answer.count(b"HTTP/1.1 ") == 1
            assert b"x-trimtab-replica: replica-1" in answer
            assert stand.dispatcher.ends[0].output_tokens == 3

    asyncio.run(run())


@pytest.mark.parametrize(
    "bytes_of_engine",
    [
        STREAM_HEAD + b"zz\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"nonsense",
        b"",
    ],
)
def test_an_answer_that_breaks_before_its_first_byte_is_asked_for_elsewhere(
    bytes_of_engine: bytes,
) -> None:
    async def run() -> None:
        async with standing(saying(bytes_of_engine, is_last=True), answer_whole) as stand:
            answer = await stand.exchange(post())
            assert status_of(answer) == 200
            assert json.loads(body_of(answer))["usage"] == USAGE
            assert stand.gateway.counts.num_retries == 1

    asyncio.run(run())


def test_an_answer_may_end_with_its_connection() -> None:
    async def run() -> None:
        head = b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\n"
        async with standing(saying(head, b"one", b"two", is_last=True)) as stand:
            answer = await stand.exchange(post())
            assert answer.endswith(b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
            assert stand.dispatcher.ends[0].ending is Ending.FINISHED

    asyncio.run(run())


def test_an_answer_too_much_is_not_given_to_the_next_request() -> None:
    async def run() -> None:
        async with standing(saying(whole_answer() + whole_answer(body=b"surplus"))) as stand:
            for _ in range(2):
                assert b"surplus" not in await stand.exchange(post())
            assert stand.gateway.counts.num_connects == 2

    asyncio.run(run())


def test_hints_before_an_answer_are_not_the_answer() -> None:
    async def run() -> None:
        hints = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
        async with standing(saying(hints, whole_answer())) as stand:
            answer = await stand.exchange(post())
            assert status_of(answer) == 200
            assert b"link" not in answer

    asyncio.run(run())


def test_an_answer_without_a_body_has_none() -> None:
    async def run() -> None:
        async with standing(saying(b"HTTP/1.1 204 No Content\r\n\r\n")) as stand:
            answer = await stand.exchange(post())
            assert status_of(answer) == 204
            assert b"transfer-encoding" not in answer
            assert body_of(answer) == b""

    asyncio.run(run())


def test_usage_is_found_where_two_pieces_meet() -> None:
    async def run() -> None:
        content = json.dumps({"text": "x" * 10_000, "usage": USAGE}).encode()
        answer = whole_answer(body=content)
        async with standing(saying(answer[:-60], answer[-60:-30], answer[-30:])) as stand:
            assert status_of(await stand.exchange(post())) == 200
            (end,) = stand.dispatcher.ends
            assert (end.input_tokens, end.output_tokens, end.cached_tokens) == (7, 3, 2)

    asyncio.run(run())


@pytest.mark.parametrize("status", [400, 422, 500])
def test_an_engines_own_errors_are_passed_on(status: int) -> None:
    async def run() -> None:
        async with standing(saying(whole_answer(status, b'{"error": 1}')), answer_whole) as stand:
            answer = await stand.exchange(post())
            assert (status_of(answer), body_of(answer)) == (status, b'{"error": 1}')
            (end,) = stand.dispatcher.ends
            assert end.ending is (Ending.REFUSED if status < 500 else Ending.FAILED)

    asyncio.run(run())


@contextlib.contextmanager
def deaf() -> Iterator[int]:
    """Yield a port that takes no connection and refuses none: its queue is full."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        for _ in range(4):
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(("127.0.0.1", port))
        yield port


def replica_at(port: int) -> LiveReplica:
    return LiveReplica(
        name="replica-0", engine=EngineKind.LLAMACPP, host="127.0.0.1", port=port, model="tiny"
    )


def test_a_replica_that_takes_no_connection_is_left_in_time() -> None:
    async def run() -> None:
        config = GatewayConfig(connect_timeout_s=0.03)
        with deaf() as port:
            async with standing(answer_whole, answer_whole, config=config) as stand:
                stand.gateway.replace(0, replica_at(port))
                answer = await stand.exchange(post())
                assert b"x-trimtab-replica: replica-1" in answer
                assert stand.gateway.counts.num_connect_failures == 1

    asyncio.run(run())


def test_requests_on_their_way_to_a_replica_that_moves_are_not_lost() -> None:
    async def run() -> None:
        with deaf() as port:
            async with standing(answer_whole, answer_whole) as stand:
                stand.gateway.replace(0, replica_at(port))
                waiting = asyncio.create_task(stand.exchange(post()))
                await asyncio.sleep(0.02)
                stand.gateway.replace(0, replica_at(stand.engines[0].port))
                assert status_of(await waiting) == 200
                assert stand.dispatcher.num_open == 0

    asyncio.run(run())
