"""Clients that are slow, huge, broken or up to something: each gets one exact answer."""

import asyncio
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from gateway_stand import answer_stream, answer_whole, post, standing

from trimtab.runtime.dispatcher.request import Ending
from trimtab.runtime.gateway.config import GatewayConfig
from trimtab.runtime.gateway.key_file import read_keys
from trimtab.runtime.gateway.tenants import KeyedTenants, Tenant
from trimtab.traces.errors import ConfigError

SMALL = GatewayConfig(
    sweep_s=0.01, max_head_bytes=2048, max_headers=20, max_body_bytes=5000, head_timeout_s=0.05,
    body_timeout_s=0.05, write_timeout_s=0.05, max_connections=3,
)  # fmt: skip


def error_of(answer: bytes) -> dict[str, object]:
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert isinstance(error, dict)
    return error


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


BODY = b'{"model": "tiny"}'
LINE = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        LINE + b"content-length: 17\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        LINE + b"transfer-encoding: chunked\r\ncontent-length: 17\r\n\r\n" + BODY,
        LINE + b"content-length: 17\r\ncontent-length: 5\r\n\r\n" + BODY,
        LINE + b"content-length: 17\r\ncontent-length: 17\r\n\r\n" + BODY,
        LINE + b"content-length : 17\r\n\r\n" + BODY,
        LINE + b"content-length: +17\r\n\r\n" + BODY,
        LINE + b"content-length: 1 7\r\n\r\n" + BODY,
        LINE + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        LINE + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        LINE + b"transfer-encoding: chunked\r\n\r\n11x\r\n" + BODY + b"\r\n0\r\n\r\n",
        LINE + b"x-bad\x00name: 1\r\ncontent-length: 17\r\n\r\n" + BODY,
        LINE + b"x-bad: a\x00b\r\ncontent-length: 17\r\n\r\n" + BODY,
        LINE + b"x-folded: a\r\n b\r\ncontent-length: 17\r\n\r\n" + BODY,
        b"POST /v1/completions HTTP/1.1\ncontent-length: 17\n\n" + BODY,
        b"POST /v1/completions HTTP/9.9\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_two_parsers_could_read_in_two_ways_is_refused(request_bytes: bytes) -> None:
    async def run() -> None:
        async with standing(answer_whole) as stand:
            answer = await stand.exchange(request_bytes)
            assert status_of(answer) == 400
            assert b"connection: close" in answer
            assert str(error_of(answer)["message"]).startswith("The request is not proper HTTP")
            assert stand.engines[0].heads == []
            assert stand.gateway.counts.num_malformed == 1

    asyncio.run(run())


def test_what_concerns_one_connection_only_never_gets_to_an_engine() -> None:
    async def run() -> None:
        async with standing(answer_whole) as stand:
            headers = (
                "keep-alive: 5\r\nte: trailers\r\nproxy-authorization: secret\r\n"
                "authorization: Bearer secret\r\ncookie: secret\r\nx-mine: kept\r\n"
                "accept-encoding: gzip\r\ntransfer-encodings: kept too\r\n"
            )
            assert status_of(await stand.exchange(post(headers=headers))) == 200
            (head,) = stand.engines[0].heads
            assert b"x-mine: kept" in head
            assert b"transfer-encodings: kept too" in head
            for gone in (b"keep-alive", b"te: ", b"secret", b"gzip", b"connection"):
                assert gone not in head
            assert head.lower().count(b"content-length") == 1

    asyncio.run(run())


def test_a_chunked_body_arrives_whole_with_one_length() -> None:
    async def run() -> None:
        async with standing(answer_whole) as stand:
            chunks = b"5\r\n" + BODY[:5] + b"\r\nc\r\n" + BODY[5:] + b"\r\n0\r\n\r\n"
            head = LINE + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
            assert status_of(await stand.exchange(head + chunks)) == 200
            assert stand.engines[0].bodies == [BODY]
            assert b"content-length: 17" in stand.engines[0].heads[0]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (LINE + b"x: " + b"a" * 3000 + b"\r\n\r\n", 431, "headers_too_large"),
        (LINE + b"".join(b"x-%d: 1\r\n" % i for i in range(30)) + b"\r\n", 431,
         "headers_too_large"),
        (LINE + b"content-length: 999999999999\r\n\r\n", 413, "request_too_large"),
        (LINE + b"transfer-encoding: chunked\r\n\r\n1388\r\n" + b"a" * 5000 + b"\r\n5\r\naaaaa\r\n",
         413, "request_too_large"),
        (LINE, 408, "request_timeout"),
        (LINE + b"content-length: 17\r\n\r\n{", 408, "request_timeout"),
    ],
)  # fmt: skip
def test_limits_are_answered_and_closed(request_bytes: bytes, status: int, code: str) -> None:
    async def run() -> None:
        async with standing(answer_whole, config=SMALL) as stand:
            answer = await stand.exchange(request_bytes)
            assert (status_of(answer), error_of(answer)["code"]) == (status, code)
            assert b"connection: close" in answer
            assert stand.engines[0].heads == []

    asyncio.run(run())


def test_a_head_that_trickles_in_is_cut_off_in_time() -> None:
    async def run() -> None:
        async with standing(answer_whole, config=SMALL) as stand:
            reader, writer = await stand.connect()
            first = asyncio.create_task(reader.readline())
            for byte in LINE + b"x-slow: 1\r\n" * 4:
                if first.done():
                    break
                writer.write(bytes([byte]))
                await asyncio.sleep(0.004)
            assert await first == b"HTTP/1.1 408 Request Timeout\r\n"
            assert stand.gateway.counts.num_slow_clients == 1
            writer.close()

    asyncio.run(run())


def test_a_client_that_does_not_read_is_cut_and_holds_its_engine_back() -> None:
    async def flood(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes
    ) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        piece = b"data: " + b"x" * 65_000 + b"\n\n"
        for _ in range(2000):
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()

    async def run() -> None:
        async with standing(flood, config=SMALL) as stand:
            reader, writer = await stand.connect()
            # A reader that takes nothing: the socket's buffers fill up.
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(post({"stream": True}, is_last=False))
            while not stand.dispatcher.ends:
                await asyncio.sleep(0.005)
            assert stand.dispatcher.ends[0].ending is Ending.ABORTED
            assert stand.gateway.counts.num_slow_clients == 1
            # Far less than the 130 MB that the engine had to say was taken from it.
            assert stand.gateway.counts.body_bytes_out < 40_000_000
            writer.close()
            reader.feed_eof()

    asyncio.run(run())


def test_more_connections_than_may_be_are_told_so() -> None:
    async def run() -> None:
        async with standing(answer_whole, config=SMALL) as stand:
            held = [await stand.connect() for _ in range(3)]
            answer = await stand.exchange(b"")
            assert (status_of(answer), error_of(answer)["code"]) == (503, "too_many_connections")
            for _, writer in held:
                writer.close()

    asyncio.run(run())


def test_an_idle_connection_is_closed_without_a_word() -> None:
    async def run() -> None:
        config = replace(SMALL, idle_timeout_s=0.05)
        async with standing(answer_whole, config=config) as stand:
            assert await stand.exchange(b"") == b""

    asyncio.run(run())


@pytest.mark.parametrize(
    ("request_bytes", "status", "code", "message"),
    [
        (post().replace(b'{"model"', b'["model"'), 400, "invalid_json", "The body is no JSON."),
        (post({"model": "other"}), 404, "model_not_found", "The model does not exist."),
        (post(path="/v1/images"), 404, "unknown_url", "Unknown path: /v1/images"),
        (b"GET /v1/completions HTTP/1.1\r\nconnection: close\r\n\r\n", 405, "method_not_allowed",
         "/v1/completions takes POST, not GET."),
    ],
)  # fmt: skip
def test_wrong_requests_get_openais_kind_of_error(
    request_bytes: bytes, status: int, code: str, message: str
) -> None:
    async def run() -> None:
        async with standing(answer_whole) as stand:
            answer = await stand.exchange(request_bytes)
            error = error_of(answer)
            assert (status_of(answer), error["code"], error["message"]) == (status, code, message)
            assert error["type"] == "invalid_request_error"

    asyncio.run(run())


def key_header(key: str) -> str:
    return f"authorization: Bearer {key}\r\n"


@pytest.mark.parametrize("headers", ["", key_header("wrong"), "authorization: Basic right\r\n"])
def test_a_wrong_key_is_401(headers: str) -> None:
    tenants = KeyedTenants([(hashlib.sha256(b"right").hexdigest(), Tenant(name="shop"))])

    async def run() -> None:
        async with standing(answer_whole, tenants=tenants) as stand:
            answer = await stand.exchange(post(headers=headers))
            assert status_of(answer) == 401
            assert error_of(answer) == {
                "message": "Incorrect API key provided.", "type": "invalid_request_error",
                "param": None, "code": "invalid_api_key",
            }  # fmt: skip
            assert status_of(await stand.exchange(post(headers=key_header("right")))) == 200

    asyncio.run(run())


EVERYBODY = Tenant(name="default", ttft_slo_s=2.0, tpot_slo_s=0.2)


def test_key_files_say_who_has_a_key_and_what_it_may(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"k").hexdigest()
    path = tmp_path / "keys.yaml"
    path.write_text(
        f"keys:\n  - {{sha256: {digest}, tenant: shop, priority: batch, ttft_s: 0.5, "
        "models: [tiny]}\n"
    )
    tenant = read_keys(path, EVERYBODY).find(b"Bearer k")
    assert tenant is not None
    assert (tenant.name, tenant.priority, tenant.ttft_slo_s, tenant.tpot_slo_s) == (
        "shop", 1, 0.5, 0.2,
    )  # fmt: skip
    assert tenant.models == frozenset({"tiny"})


def test_all_faults_of_a_key_file_are_told(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys:\n  - {{sha256: short, tenant: ''}}\n  - {{sha256: {'a' * 64}}}\n")
    with pytest.raises(ConfigError) as caught:
        read_keys(path, EVERYBODY)
    text = str(caught.value)
    assert "keys[0].sha256" in text
    assert "keys[0].tenant" in text
    assert "keys[1].tenant" in text


def test_an_offer_to_upgrade_is_refused_once() -> None:
    async def run() -> None:
        async with standing(answer_whole) as stand:
            offer = "connection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
            answer = await stand.exchange(post(headers=offer, is_last=False))
            assert answer.count(b"HTTP/1.1 ") == 1
            assert (status_of(answer), error_of(answer)["code"]) == (400, "no_upgrade")
            assert stand.engines[0].heads == []

    asyncio.run(run())


def test_a_client_may_ask_before_it_sends_its_body() -> None:
    async def run() -> None:
        async with standing(answer_stream) as stand:
            reader, writer = await stand.connect()
            writer.write(LINE + b"expect: 100-continue\r\ncontent-length: 17\r\n\r\n")
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(BODY)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
            writer.close()

    asyncio.run(run())
