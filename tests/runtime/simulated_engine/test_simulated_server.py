"""The simulated engine over HTTP: as an engine answers, streamed or not, and its metrics page."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from trimtab.runtime.simulated_engine.batch import BLOCK_TOKENS, EngineSpeed
from trimtab.runtime.simulated_engine.server import SimulatedEngine, block_hashes
from trimtab.runtime.telemetry.probes.engine_page import EnginePage
from trimtab.runtime.telemetry.signals import SIGNALS_BY_SCOPE, Scope

FAST = EngineSpeed(step_s=0.001, prefill_token_s=0.0, decode_seq_s=0.0)


def with_engine(
    check: Callable[[SimulatedEngine, aiohttp.ClientSession], Awaitable[None]],
    speed: EngineSpeed = FAST,
) -> None:
    async def main() -> None:
        engine = SimulatedEngine(speed, model="tiny")
        port = await engine.start()
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
                await check(engine, session)
        finally:
            await engine.close()

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_an_answer_has_as_many_tokens_as_asked_for(path: str) -> None:
    async def check(engine: SimulatedEngine, session: aiohttp.ClientSession) -> None:
        body = {"model": "tiny", "prompt": "a" * 78, "max_tokens": 5}
        if "chat" in path:
            body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}],
                    "max_completion_tokens": 5}  # fmt: skip
        async with session.post(path, json=body) as response:
            answer = await response.json()
        assert response.status == 200
        choice = answer["choices"][0]
        text = choice["message"]["content"] if "chat" in path else choice["text"]
        assert text == " token" * 5
        assert choice["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 5
        # Four bytes of the prompt, its quotes included, count as a token.
        if "chat" not in path:
            assert answer["usage"]["prompt_tokens"] == 20

    with_engine(check)


def test_a_stream_gives_token_by_token_and_ends_with_the_usage() -> None:
    async def check(engine: SimulatedEngine, session: aiohttp.ClientSession) -> None:
        body = {"prompt": "a b c", "max_tokens": 4, "stream": True}
        async with session.post("/v1/completions", json=body) as response:
            events = [line[6:] async for line in response.content if line.startswith(b"data: ")]
        assert response.content_type == "text/event-stream"
        assert events[-1].strip() == b"[DONE]"
        parts = [json.loads(event) for event in events[:-1]]
        assert [part["choices"][0]["text"] for part in parts[:-1]] == [" token"] * 4
        assert parts[-1]["choices"] == []
        assert parts[-1]["usage"]["completion_tokens"] == 4

    with_engine(check)


def test_the_page_says_what_runs_and_waits_as_vllm_says_it() -> None:
    async def check(engine: SimulatedEngine, session: aiohttp.ClientSession) -> None:
        body = {"prompt": "x" * 400, "max_tokens": 1000}
        asking = [asyncio.create_task(session.post("/v1/completions", json=body)) for _ in range(3)]
        while engine.batch.num_output_tokens < 3:
            await asyncio.sleep(0.001)
        async with session.get("/metrics") as response:
            text = await response.text()
        row = EnginePage().read(text, 0.0)
        names = [signal.name for signal in SIGNALS_BY_SCOPE[Scope.REPLICA]]
        page = dict(zip(names, row, strict=True))
        assert (page["running_requests"], page["waiting_requests"]) == (2.0, 1.0)
        assert 0.0 < page["kv_usage_frac"] <= 1.0
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        while engine.num_aborted < 3:
            await asyncio.sleep(0.001)
        # Who went away is not computed any further.
        while engine.batch.running:
            await asyncio.sleep(0.001)
        assert engine.batch.num_finished == 0

    with_engine(check, EngineSpeed(step_s=0.01, max_num_seqs=2, kv_tokens=4096))


def test_health_models_and_what_there_is_not() -> None:
    async def check(engine: SimulatedEngine, session: aiohttp.ClientSession) -> None:
        async with session.get("/health") as response:
            assert response.status == 200
        async with session.get("/v1/models") as response:
            assert (await response.json())["data"][0]["id"] == "tiny"
        async with session.get("/nothing") as response:
            assert response.status == 404
        async with session.post("/v1/completions", data=b"{no json") as response:
            assert response.status == 400
            assert "malformed" in (await response.json())["error"]["message"]

    with_engine(check)


def test_prompts_share_the_hashes_of_what_they_share() -> None:
    size = 4 * BLOCK_TOKENS
    one, other = block_hashes(b"a" * 3 * size), block_hashes(b"a" * 2 * size + b"b" * size)
    assert len(one) == 3
    assert one[:2] == other[:2]
    assert one[2] != other[2]
    assert block_hashes(b"a" * (size - 1)) == ()
    # The same bytes elsewhere are another block.
    assert one[0] != one[1]
