"""SGLang by the routes and names of its source: what it can do, and what it is asked."""

import asyncio
import json

import pytest
from fake_engine import Answers, answering

from trimtab.runtime.engines.capability import Capability
from trimtab.runtime.engines.engine import EventSource, HealthState
from trimtab.runtime.engines.engine_error import EngineError
from trimtab.runtime.engines.live_replica import EngineKind

SGLANG = EngineKind.SGLANG
EVENTS = {"publisher": "zmq", "endpoint": "tcp://*:6000", "topic": "kv-events"}


def answers(**arguments: object) -> Answers:
    info = {
        "version": "0.5.10",
        "page_size": 16,
        "max_total_num_tokens": 40_000,
        "max_running_requests": None,
        "internal_states": [{"effective_max_running_requests_per_dp": 24}],
        "enable_priority_scheduling": False,
        "enable_memory_saver": False,
        "enable_lora": False,
        "kv_events_config": None,
        **arguments,
    }
    models = [{"id": "tiny", "max_model_len": 8192}, {"id": "sql", "parent": "tiny"}]
    posts = (
        "/abort_request", "/release_memory_occupation", "/resume_memory_occupation",
        "/flush_cache", "/load_lora_adapter", "/unload_lora_adapter",
    )  # fmt: skip
    return {
        "GET /server_info": (200, info),
        "GET /v1/models": (200, {"data": models}),
        "GET /health": (200, ""),
        **{f"POST {path}": (200, "") for path in posts},
    }


def test_what_it_is_and_can_do_with_all_options() -> None:
    async def scenario() -> None:
        everything = answers(
            enable_priority_scheduling=True,
            enable_memory_saver=True,
            enable_lora=True,
            kv_events_config=json.dumps(EVENTS),
        )
        async with answering(SGLANG, everything) as (engine, _):
            facts = await engine.facts()
            assert facts.capabilities.label == (
                "priority, abort, sleep, reset prefix cache, load lora, kv events, tokenize"
            )
            assert (facts.num_slots, facts.context_tokens) == (24, 8192)
            assert (facts.kv_tokens, facts.page_tokens) == (40_000, 16)
            assert (facts.models, facts.adapters) == (("tiny",), ("sql",))
            source = EventSource(endpoint="tcp://*:6000", replay_endpoint=None, topic="kv-events")
            assert facts.event_sources == (source,)

    asyncio.run(scenario())


@pytest.mark.parametrize(("is_low_first", "sent"), [(False, -1), (True, 1)])
def test_a_lower_priority_goes_first_whichever_way_it_counts(is_low_first: bool, sent: int) -> None:
    async def scenario() -> None:
        turned = answers(
            enable_priority_scheduling=True, schedule_low_priority_values_first=is_low_first
        )
        async with answering(SGLANG, turned) as (engine, _):
            await engine.facts()
            fields = engine.request_fields(priority=1, slot=3, request_id="id-7")
            assert fields == {"priority": sent, "rid": "id-7;"}

    asyncio.run(scenario())


def test_what_it_is_asked() -> None:
    async def scenario() -> None:
        options = answers(enable_memory_saver=True, enable_lora=True)
        async with answering(SGLANG, options) as (engine, asked):
            await engine.facts()
            asked.clear()
            await engine.abort(["a", "", "b"])  # none means none, not all
            await engine.sleep()
            await engine.wake()
            await engine.reset_prefix_cache()
            await engine.load_lora("l1", "lora1")
            await engine.unload_lora("l1")
            assert asked == [
                ("POST /abort_request", {"rid": "a;"}),
                ("POST /abort_request", {"rid": ";"}),
                ("POST /abort_request", {"rid": "b;"}),
                ("POST /release_memory_occupation", {}),
                ("POST /resume_memory_occupation", {}),
                ("POST /flush_cache", None),
                ("POST /load_lora_adapter", {"lora_name": "l1", "lora_path": "lora1"}),
                ("POST /unload_lora_adapter", {"lora_name": "l1"}),
            ]

    asyncio.run(scenario())


def test_one_without_options_says_what_is_missing() -> None:
    async def scenario() -> None:
        async with answering(SGLANG, answers(kv_events_config="not json")) as (engine, _):
            with pytest.raises(EngineError, match="'sleep'; start it with --enable-memory-saver"):
                await engine.sleep()
            with pytest.raises(EngineError, match="'load lora'; start it with --enable-lora"):
                await engine.load_lora("a", "p")
            facts = await engine.facts()
            assert Capability.KV_EVENTS not in facts.capabilities
            assert engine.request_fields(priority=1) == {}
            assert (await engine.health()).state is HealthState.READY

    asyncio.run(scenario())


def test_an_older_one_is_asked_by_the_older_name() -> None:
    async def scenario() -> None:
        older = dict(answers())
        older["GET /get_server_info"] = older.pop("GET /server_info")
        async with answering(SGLANG, older) as (engine, _):
            assert (await engine.facts()).version == "0.5.10"

    asyncio.run(scenario())


def test_a_cache_in_use_is_not_flushed_and_that_is_said() -> None:
    async def scenario() -> None:
        busy = {**answers(), "POST /flush_cache": (400, "Flush cache failed.")}
        async with answering(SGLANG, busy) as (engine, _):
            with pytest.raises(EngineError, match=r"Flush cache failed\.; drain") as fault:
                await engine.reset_prefix_cache()
            assert fault.value.status == 400

    asyncio.run(scenario())
