"""Real llama.cpp servers: what they say they can do, and a session that moves between them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from trimtab.runtime.engines.capability import Capability
from trimtab.runtime.engines.connect import connect
from trimtab.runtime.engines.engine import Engine, Health, HealthState
from trimtab.runtime.engines.engine_error import EngineError
from trimtab.runtime.engines.kv_move import move_session
from trimtab.runtime.engines.live_replica import EngineKind, LiveReplica
from trimtab.runtime.launcher.tiny_model import TinyModel, write_tiny_model

pytest.importorskip("gguf", reason="extra engines is not installed: gguf writes the model")
pytest.importorskip("xllamacpp", reason="extra engines is not installed: llama.cpp's server")

PROMPT = "route this request to a replica that holds its cache " * 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slots")


@pytest.fixture(scope="module")
def ports(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """Two replicas that share a folder, one of another shape, and one without a folder."""
    from llama_pair import serving

    models = tmp_path_factory.mktemp("models")
    write_tiny_model(TinyModel(num_layers=2, width=128), models / "same.gguf")
    write_tiny_model(TinyModel(num_layers=1, width=64), models / "other.gguf")
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(serving(models / model, place, sleep_idle_s=sleep_idle_s))
            for name, model, place, sleep_idle_s in (
                ("drowsy", "other.gguf", folder, 1),
                ("a", "same.gguf", folder, -1),
                ("b", "same.gguf", folder, -1),
                ("other", "other.gguf", folder, -1),
                ("plain", "other.gguf", None, -1),
            )
        }


@asynccontextmanager
async def engines(ports: dict[str, int], *names: str) -> AsyncIterator[list[Engine]]:
    async with aiohttp.ClientSession() as session:
        yield [
            connect(
                LiveReplica(
                    name=name, engine=EngineKind.LLAMACPP, host="127.0.0.1", port=ports[name],
                    model="tiny",
                ),
                session,
            )
            for name in names
        ]  # fmt: skip


async def complete(engine: Engine, prompt: str, slot: int) -> dict[str, float]:
    """Run a request in a slot; return the server's own figures."""
    body = {"prompt": prompt, "n_predict": 2, "temperature": 0, "ignore_eos": True}
    fields = engine.request_fields(slot=slot, priority=1)
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{engine.replica.url}/completion", json={**body, **fields}) as response,
    ):
        answer = await response.json()
        assert answer["id_slot"] == slot
        timings: dict[str, float] = answer["timings"]
        return timings


def test_what_a_server_with_a_slot_folder_is_and_can_do(ports: dict[str, int]) -> None:
    async def scenario() -> None:
        async with engines(ports, "a") as (engine,):
            assert await engine.health() == Health(HealthState.READY)
            assert await engine.is_asleep() is False
            facts = await engine.facts()
            assert facts.capabilities.label == (
                "save session, reset prefix cache, pin slot, tokenize"
            )
            assert (facts.num_slots, facts.context_tokens, facts.kv_tokens) == (2, 1024, 2048)
            assert facts.models == ("tiny",)
            assert facts.page_tokens is None
            assert len(await engine.tokenize("the queue")) == 2
            assert engine.request_fields(priority=1, slot=0) == {"id_slot": 0}

    asyncio.run(scenario())


def test_one_without_says_what_is_missing_and_how_to_get_it(ports: dict[str, int]) -> None:
    async def scenario() -> None:
        async with engines(ports, "plain") as (engine,):
            for call in (engine.save_session(0, "x.bin"), engine.reset_prefix_cache()):
                with pytest.raises(EngineError, match="'save session'; start it with --slot-save"):
                    await call
            with pytest.raises(EngineError, match=r"'plain'.*no capability 'abort'") as fault:
                await engine.abort(["id"])
            assert fault.value.missing is Capability.ABORT
            assert (await engine.facts()).capabilities.label == "pin slot, tokenize"

    asyncio.run(scenario())


def test_a_session_moves_and_its_next_turn_finds_its_prefix(
    ports: dict[str, int], folder: Path
) -> None:
    async def scenario() -> None:
        async with engines(ports, "a", "b") as (source, target):
            num_tokens = len(await source.tokenize(PROMPT))
            cold = await complete(source, PROMPT, slot=1)
            assert cold["cache_n"] == 0
            move = await move_session(
                source, target, source_slot=1, target_slot=0, folder=folder, is_erased=True
            )
            assert move.tokens == num_tokens + 1  # and the first of the answer's two tokens
            assert move.size_bytes > move.tokens * 2 * 2 * 64 * 2  # K and V, 2 layers, 16 bit
            assert 0 < move.save_s + move.restore_s <= move.total_s
            turn = await complete(target, PROMPT + "and then the next", slot=0)
            assert turn["cache_n"] >= num_tokens - 1
            assert turn["prompt_n"] < 20
            assert list(folder.iterdir()) == []
            again = await complete(source, PROMPT, slot=1)  # which forgot it
            assert again["cache_n"] == 0
            await target.reset_prefix_cache()
            assert (await complete(target, PROMPT, slot=0))["cache_n"] == 0

    asyncio.run(scenario())


def test_a_move_that_cannot_be_says_why_and_leaves_the_source_as_it_was(
    ports: dict[str, int], folder: Path
) -> None:
    async def scenario() -> None:
        async with engines(ports, "a", "b", "other") as (source, target, other):
            await source.reset_prefix_cache()
            with pytest.raises(EngineError, match="source slot 0 of replica 'a' holds no KV"):
                await move_session(source, target, source_slot=0, target_slot=0)
            with pytest.raises(EngineError, match=r"slot 7 .* is not there; it has slots \[0, 1\]"):
                await move_session(source, target, source_slot=7, target_slot=0)
            await complete(source, PROMPT, slot=0)
            with pytest.raises(EngineError, match=r"'other'.*restore answered 400.*same model"):
                await move_session(source, other, source_slot=0, target_slot=0, folder=folder)
            assert list(folder.iterdir()) == []
            assert (await complete(source, PROMPT + "and", slot=0))["cache_n"] > 100

    asyncio.run(scenario())


def test_one_that_fell_asleep_says_so_until_it_is_asked_for_more(ports: dict[str, int]) -> None:
    async def scenario() -> None:
        async with engines(ports, "drowsy") as (engine,):
            async with asyncio.timeout(60):
                while (await engine.health()).state is not HealthState.ASLEEP:
                    await asyncio.sleep(0.05)
            assert await engine.is_asleep() is True
            assert len(await engine.slots()) == 2
            assert (await engine.health()).state is HealthState.READY

    asyncio.run(scenario())
