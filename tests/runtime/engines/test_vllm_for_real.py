"""Two real vLLM replicas on a CPU: state, priority, abort, KV events. Optional, see `vllm_servers`.

Run: TRIMTAB_VLLM=.../bin/vllm pytest -m slow tests/runtime/engines/test_vllm_for_real.py -s
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager

import aiohttp
import numpy as np
import pytest
from vllm_servers import BLOCK_TOKENS, COMMAND, MAKE_MODEL, MAX_SEQUENCES, serving_pair

from trimtab.runtime.dispatcher.prefix_index import PrefixIndex
from trimtab.runtime.engines.block_index import EngineBlockIndex
from trimtab.runtime.engines.connect import connect
from trimtab.runtime.engines.engine import Engine, HealthState
from trimtab.runtime.engines.kv_subscriber import KvSubscriber, kv_sources
from trimtab.runtime.engines.live_replica import LiveReplica
from trimtab.runtime.telemetry.probes.engine_page import EnginePage
from trimtab.runtime.telemetry.signals import SIGNALS_BY_SCOPE, Scope
from trimtab.runtime.understanding.token_blocks import token_block_hashes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not COMMAND or not MAKE_MODEL.is_file(), reason="TRIMTAB_VLLM names no command `vllm`"
    ),
]

PROMPT = [3 + k % 400 for k in range(10 * BLOCK_TOKENS + 5)]


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LiveReplica]]:
    with serving_pair(tmp_path_factory.mktemp("vllm")) as made:
        yield made


class Client:
    """Sends requests to one replica as the gateway would."""

    def __init__(self, session: aiohttp.ClientSession, replica: LiveReplica) -> None:
        self.session, self.replica = session, replica
        self.engine: Engine = connect(replica, session)

    async def stream(
        self, prompt: object, max_tokens: int, *, request_id: str = "", priority: int = 0
    ) -> tuple[float, str | None]:
        """Run a request; return the moment of its first token, and how it ended."""
        body = {
            "model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True,
            "stream": True, **self.engine.request_fields(priority=priority),
        }  # fmt: skip
        first_at_s, reason = float("nan"), None
        async with self.session.post(
            f"{self.replica.url}/v1/completions", json=body, headers={"X-Request-Id": request_id}
        ) as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    first_at_s = first_at_s if first_at_s > 0 else time.monotonic()
                    reason = json.loads(line[6:])["choices"][0]["finish_reason"] or reason
        return first_at_s, reason

    async def cached_tokens(self, prompt: list[int]) -> int:
        """Run a request of one token; return how many of its prompt were cached."""
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 1}
        url = f"{self.replica.url}/v1/completions"
        async with self.session.post(url, json=body) as response:
            usage = (await response.json())["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    async def page(self) -> dict[str, float]:
        async with self.session.get(f"{self.replica.url}/metrics") as response:
            row = EnginePage().read(await response.text(), 0.0)
        return {s.name: v for s, v in zip(SIGNALS_BY_SCOPE[Scope.REPLICA], row, strict=True)}

    async def page_when(self, is_so: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        async with asyncio.timeout(30):
            while not is_so(page := await self.page()):
                await asyncio.sleep(0.05)
        return page


@asynccontextmanager
async def clients(replicas: list[LiveReplica]) -> AsyncIterator[list[Client]]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        made = [Client(session, replica) for replica in replicas]
        for client in made:
            await client.engine.facts()
        yield made


def run(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(scenario())


def test_state_idle_and_busy(replicas: list[LiveReplica]) -> None:
    async def scenario() -> None:
        async with clients(replicas) as (one, other):
            facts = await one.engine.facts()
            print(f"\nfacts: {facts}")
            assert facts.capabilities.label == (
                "priority, abort, sleep, reset prefix cache, kv events, tokenize"
            )
            assert (facts.num_slots, facts.page_tokens) == (MAX_SEQUENCES, BLOCK_TOKENS)
            assert facts.event_sources[0].endpoint.startswith("tcp://*:")
            tasks = [asyncio.create_task(one.stream([5, 6, 7 + k], 400)) for k in range(10)]
            busy = await one.page_when(lambda page: page["waiting_requests"] > 0)
            print(f"busy: {busy}")
            assert busy["running_requests"] == MAX_SEQUENCES
            assert busy["waiting_requests"] == 10 - MAX_SEQUENCES
            assert 0 < busy["kv_usage_frac"] < 1
            assert (await other.page())["running_requests"] == 0.0
            await asyncio.gather(*tasks)
            idle = await one.page_when(lambda page: page["running_requests"] == 0)
            assert idle["output_tokens"] >= 4000

    run(scenario)


def test_who_has_priority_goes_first(replicas: list[LiveReplica]) -> None:
    async def scenario() -> None:
        async with clients(replicas) as (one, _):
            batch = [asyncio.create_task(one.stream([9, 9, k], 150, priority=5)) for k in range(16)]
            await one.page_when(lambda page: page["waiting_requests"] >= 8)
            first_at_s, _ = await one.stream([1, 2, 3], 5, priority=0)
            others = sorted([(await task)[0] for task in batch])
            ahead = sum(at_s < first_at_s for at_s in others)
            print(f"\n{ahead} of 16 batch requests got their first token before the urgent one")
            assert ahead <= 2 * MAX_SEQUENCES

    run(scenario)


@pytest.mark.parametrize("path", ["by id", "by closing its connection"])
def test_a_request_is_ended(replicas: list[LiveReplica], path: str) -> None:
    async def scenario() -> None:
        async with clients(replicas) as (one, _):
            task = asyncio.create_task(one.stream([4, 4], 1000, request_id="to-end"))
            await one.page_when(lambda page: page["running_requests"] == 1)
            started_at_s = time.monotonic()
            if path == "by id":
                await one.engine.abort(["to-end"])
                _, reason = await task
                assert reason == "abort"
            else:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            after = await one.page_when(lambda page: page["running_requests"] == 0)
            took_s = time.monotonic() - started_at_s
            print(f"\nended {path}: engine idle after {took_s * 1e3:.0f} ms")
            assert took_s < 2.0
            assert after["waiting_requests"] == 0

    run(scenario)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.02)


def test_kv_events_say_what_each_holds(replicas: list[LiveReplica]) -> None:
    prefixes = PrefixIndex([10_000, 10_000])
    index = EngineBlockIndex(prefixes, block_tokens=16)  # half of an engine's block
    blocks = token_block_hashes(np.array(PROMPT), 16)
    subscriber = KvSubscriber(kv_sources(replicas), index)
    subscriber.start()

    async def scenario() -> None:
        async with clients(replicas) as (one, other):
            assert await other.cached_tokens(PROMPT) == 0
            await until(lambda: prefixes.match(blocks).tolist() == [0, 20])
            assert await one.cached_tokens(PROMPT) == 0
            await until(lambda: prefixes.match(blocks).tolist() == [20, 20])
            assert await one.cached_tokens(PROMPT) == 10 * BLOCK_TOKENS
            await one.engine.reset_prefix_cache()
            await asyncio.sleep(1.0)
            print(f"\n1 s after a reset while idle: {prefixes.match(blocks)}")
            subscriber.see_reset(0)  # an idle engine says so with its next step only
            assert prefixes.match(blocks).tolist() == [0, 20]
            clears = index.counts.clears
            assert await one.cached_tokens(PROMPT) == 0
            await until(lambda: prefixes.match(blocks).tolist() == [20, 20])
            assert index.counts.clears == clears + 1  # the engine's own
            print(f"\nheard: {subscriber.counts}, blocks: {index.counts}")
            assert index.counts.orphans == 0
            await hears_late()
            await other.engine.sleep()
            assert (await other.engine.health()).state is HealthState.ASLEEP
            page = await other.page()
            assert page["is_awake"] == 0.0
            subscriber.see_awake(1, page["is_awake"] > 0)
            assert prefixes.match(blocks).tolist()[1] == 0
            await other.engine.wake()
            assert (await other.page())["is_awake"] == 1.0

    async def hears_late() -> None:
        """Who begins to listen learns from the replay what was before."""
        late = PrefixIndex([10_000, 10_000])
        listener = KvSubscriber(kv_sources(replicas), EngineBlockIndex(late, block_tokens=16))
        listener.start()
        try:
            await until(lambda: late.match(blocks).tolist() == [20, 20])
            print(f"heard late: {listener.counts}")
        finally:
            listener.close()

    try:
        run(scenario)
    finally:
        print(f"\nheld: {prefixes.match(blocks)}, {subscriber.counts}, {index.counts}")
        subscriber.close()


def test_an_engine_that_slept_answers_again(replicas: list[LiveReplica]) -> None:
    async def scenario() -> None:
        async with clients(replicas) as (_, other):
            assert (await other.engine.health()).state is HealthState.READY
            assert (await other.stream([1, 2], 3))[1] == "length"

    run(scenario)
