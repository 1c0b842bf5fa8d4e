"""SGLang's server.

What it can do is in the arguments that it was started with, which `/server_info` repeats. A higher
priority goes first there, unless --schedule-low-priority-values-first; ours are turned round. A
request is ended by closing its connection, or by the `rid` in its body.

SGLang names no adapter in its KV events, so with adapters they say too much. It tells of each page
in an event of its own: with KV events, start it with a --page-size of 16 or more.

Does not know: vLLM, whose routes have other names (`vllm.py`).
Source: sglang/srt/entrypoints/http_server.py, server_args.py and managers/io_struct.py of SGLang
0.5.10; no such server was at hand.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Final

from .capability import Capability
from .engine import Engine, EngineFacts, EventSource, Health, HealthState
from .engine_error import EngineError
from .engine_http import EngineHttp, count, items, mapping, served_models, text, token_ids

_ARGUMENTS: Final = {
    Capability.PRIORITY: "enable_priority_scheduling",
    Capability.SLEEP: "enable_memory_saver",
    Capability.LOAD_LORA: "enable_lora",
}
_ALWAYS: Final = Capability.ABORT | Capability.RESET_PREFIX_CACHE | Capability.TOKENIZE
_ADVICE: Final = {
    Capability.SLEEP: "start it with --enable-memory-saver",
    Capability.LOAD_LORA: "start it with --enable-lora",
}
# Weights and KV cache are moved or filled again.
_SLEEP_TIMEOUT_S: Final = 120.0
_KEY_ADVICE: Final = "if it was started with --admin-api-key, give that key as api_key_env"


class SglangEngine(Engine):
    """One SGLang server."""

    def __init__(self, http: EngineHttp) -> None:
        self.replica = http.replica
        self._http = http
        self._capabilities: Capability | None = None
        self._is_low_first = False

    async def facts(self) -> EngineFacts:
        """Ask for models and for the arguments that it was started with."""
        info = mapping(await self._http.find("/server_info"))
        if not info:  # its name until 0.5.4
            info = mapping(await self._http.get("/get_server_info"))
        models = served_models(await self._http.get("/v1/models"))
        capabilities = _ALWAYS
        for capability, argument in _ARGUMENTS.items():
            capabilities |= capability if info.get(argument) is True else Capability.NONE
        sources = _event_sources(info)
        capabilities |= Capability.KV_EVENTS if sources else Capability.NONE
        self._capabilities = capabilities
        self._is_low_first = info.get("schedule_low_priority_values_first") is True
        lengths = [n for m in models if (n := count(m.get("max_model_len"))) is not None]
        states = items(info.get("internal_states"))
        running = [count(s.get("effective_max_running_requests_per_dp")) for s in states]
        return EngineFacts(
            capabilities=capabilities,
            models=tuple(str(m["id"]) for m in models if not m.get("parent")),
            adapters=tuple(str(m["id"]) for m in models if m.get("parent")),
            version=text(info.get("version")),
            num_slots=sum(filter(None, running)) or count(info.get("max_running_requests")),
            context_tokens=max(lengths, default=None),
            kv_tokens=count(info.get("max_total_num_tokens")),
            page_tokens=count(info.get("page_size")),
            event_sources=sources,
        )

    async def health(self) -> Health:
        """Ask for `/health`: 503 while it starts, stops, or hears nothing from its scheduler.

        An idle server computes a token for each such call, which takes it a second.
        """
        try:
            answer = await self._http.ask("GET", "/health")
            if answer.status == 503:
                return Health(HealthState.LOADING, answer.text)
            self._http.good("GET", "/health", answer)
        except EngineError as error:
            return Health(HealthState.UNREACHABLE, str(error))
        return Health(HealthState.READY)

    async def is_asleep(self) -> bool | None:
        """Return None: it does not say."""
        return None

    def request_fields(
        self, *, priority: int | None = None, slot: int | None = None, request_id: str | None = None
    ) -> Mapping[str, int | str]:
        """Return the priority, if it counts, and the id to be ended by."""
        fields: dict[str, int | str] = {}
        if priority is not None and Capability.PRIORITY in (self._capabilities or Capability.NONE):
            fields["priority"] = priority if self._is_low_first else -priority
        if request_id is not None:
            fields["rid"] = _rid(request_id)
        return fields

    async def abort(self, request_ids: Sequence[str]) -> None:
        """End requests by the ids that `request_fields` was called with."""
        for one in request_ids:
            await self._http.post("/abort_request", {"rid": _rid(one)}, advice=_KEY_ADVICE)

    async def sleep(self) -> None:
        """Release the memory of weights and KV; it must be idle."""
        await self._needs(Capability.SLEEP)
        await self._http.post(
            "/release_memory_occupation", {}, advice=_KEY_ADVICE, timeout_s=_SLEEP_TIMEOUT_S
        )

    async def wake(self) -> None:
        """Take the memory again."""
        await self._needs(Capability.SLEEP)
        await self._http.post(
            "/resume_memory_occupation", {}, advice=_KEY_ADVICE, timeout_s=_SLEEP_TIMEOUT_S
        )

    async def reset_prefix_cache(self) -> None:
        """Forget all prefixes.

        Raises: EngineError too while requests run or wait.
        """
        await self._http.post("/flush_cache", advice="drain the replica first, or ask again")

    async def load_lora(self, name: str, path: str) -> None:
        """Load an adapter."""
        await self._needs(Capability.LOAD_LORA)
        await self._http.post("/load_lora_adapter", {"lora_name": name, "lora_path": path})

    async def unload_lora(self, name: str) -> None:
        """Let an adapter go."""
        await self._needs(Capability.LOAD_LORA)
        await self._http.post("/unload_lora_adapter", {"lora_name": name})

    async def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text, with what the model puts before it."""
        body = {"model": self.replica.model, "prompt": text}
        tokens = token_ids(await self._http.post_json("/tokenize", body))
        if tokens is None:
            raise self._http.error(
                what="POST /tokenize", fault="answered no tokens", advice="check its version"
            )
        return tokens

    async def _needs(self, capability: Capability) -> None:
        if self._capabilities is None:
            await self.facts()
        if self._capabilities is None or capability not in self._capabilities:
            raise self.lacks(capability, _ADVICE.get(capability, ""))


def _rid(request_id: str) -> str:
    """Return an id that no other begins with: SGLang aborts all whose ids begin with one."""
    return f"{request_id};"


def _event_sources(info: Mapping[str, object]) -> tuple[EventSource, ...]:
    """Read `kv_events_config`, JSON in a text; the port is that of data-parallel rank 0."""
    try:
        config = mapping(json.loads(text(info.get("kv_events_config")) or "{}"))
    except ValueError:
        return ()
    if config.get("publisher") != "zmq":
        return ()
    return (
        EventSource(
            endpoint=text(config.get("endpoint")) or "tcp://*:5557",
            replay_endpoint=text(config.get("replay_endpoint")),
            topic=text(config.get("topic")) or "",
        ),
    )
