"""Engines that are gone, hang, or answer nonsense: errors that say where and what to do."""

import asyncio
import contextlib

import aiohttp
import pytest
from fake_engine import answering
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.runtime.engines.connect import ENGINES, connect
from trimtab.runtime.engines.engine import HealthState
from trimtab.runtime.engines.engine_error import EngineError
from trimtab.runtime.engines.engine_http import EngineHttp
from trimtab.runtime.engines.live_replica import EngineKind, LiveReplica

KINDS = list(EngineKind)


def replica_at(port: int, kind: EngineKind = EngineKind.VLLM) -> LiveReplica:
    return LiveReplica(name="r0", engine=kind, host="127.0.0.1", port=port, model="tiny")


def test_every_kind_of_engine_has_a_class() -> None:
    assert set(ENGINES) == set(EngineKind)


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_that_is_gone_is_unreachable_and_an_error_when_asked(kind: EngineKind) -> None:
    async def scenario() -> None:
        async with aiohttp.ClientSession() as session:
            engine = connect(replica_at(1, kind), session)
            health = await engine.health()
            assert health.state is HealthState.UNREACHABLE
            assert "http://127.0.0.1:1" in health.detail
            with pytest.raises(EngineError, match=r"'r0' .*GET /.* failed: .*; look whether it"):
                await engine.facts()

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_that_hangs_is_given_up_in_time(kind: EngineKind) -> None:
    async def scenario() -> None:
        never = asyncio.Event()

        async def hang(_: object, writer: asyncio.StreamWriter) -> None:
            await never.wait()
            writer.close()

        server = await asyncio.start_server(hang, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with aiohttp.ClientSession() as session:
            engine = connect(replica_at(port, kind), session, timeout_s=0.05)
            health = await engine.health()
            assert health.state is HealthState.UNREACHABLE
            assert "was not answered in 0.05 s; look whether it hangs" in health.detail
        never.set()
        server.close()
        await server.wait_closed()

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("answer", "state"),
    [((503, "Loading model"), HealthState.LOADING), ((500, "oops"), HealthState.UNREACHABLE)],
)
def test_health_by_status(kind: EngineKind, answer: tuple[int, object], state: HealthState) -> None:
    async def scenario() -> None:
        async with answering(kind, {"GET /health": answer}) as (engine, _):
            assert (await engine.health()).state is state

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nonsense", ["<html>", "[1, 2]", "null", '{"data": 7}', "[" * 100_000])
def test_nonsense_is_an_error_or_nothing_known_and_never_another_fault(
    kind: EngineKind, nonsense: str
) -> None:
    async def scenario() -> None:
        paths = ("/props", "/v1/models", "/openapi.json", "/server_info", "/kv_event_sources",
                 "/version", "/metrics", "/lora-adapters", "/is_sleeping", "/health")  # fmt: skip
        async with answering(kind, {f"GET {path}": (200, nonsense) for path in paths}) as (e, _):
            with contextlib.suppress(EngineError):
                facts = await e.facts()
                assert facts.models == ()
                assert facts.num_slots is None
            assert (await e.health()).state in (HealthState.READY, HealthState.UNREACHABLE)

    asyncio.run(scenario())


def test_an_error_quotes_the_answer_and_carries_its_status() -> None:
    async def scenario() -> None:
        async with answering(EngineKind.VLLM, {"GET /v1/models": (429, "slow\n down")}) as (e, _):
            with pytest.raises(EngineError, match=r"answered 429, .*: slow down") as x:
                await e.facts()
            assert x.value.status == 429

    asyncio.run(scenario())


def test_the_key_is_sent_as_bearer_token() -> None:
    async def scenario() -> None:
        answers = {"GET /health": (200, "")}
        async with answering(EngineKind.SGLANG, answers, api_key="secret") as (engine, _):
            assert (await engine.health()).state is HealthState.READY

    asyncio.run(scenario())


def test_an_answer_without_end_is_cut_off() -> None:
    async def scenario() -> None:
        answers = {"GET /v1/models": (200, "x" * (16 * 1024 * 1024 + 1))}
        async with answering(EngineKind.VLLM, answers) as (engine, _):
            with pytest.raises(EngineError, match="over 16777216 bytes; that is no engine"):
                await engine.facts()

    asyncio.run(scenario())


@settings(max_examples=40)
@given(st.floats(max_value=0))
def test_a_time_out_must_be_above_zero(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s must be above 0, got"):
        EngineHttp(replica_at(1), None, timeout_s=timeout_s)  # type: ignore[arg-type]
