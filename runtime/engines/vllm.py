"""vLLM's OpenAI server, and what speaks its HTTP.

Most of what steers it is there only in its development mode (VLLM_SERVER_DEV_MODE=1), adapters
only with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1: its own list of routes says what is. Whether
priorities count is in its configuration; where it does not show that, a request of one token with a
priority is tried. A lower priority goes first.

A request is ended by closing its connection, or by its id: the header `X-Request-Id` that it was
sent with, to which vLLM adds the kind of request. The answer says only how many ids were sent.

Does not know: SGLang, whose routes have other names (`sglang.py`).
Source: routes and answers of vLLM 0.32.0; vllm/entrypoints.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from ..telemetry.probes.engine_page import EnginePage
from ..telemetry.signals import Scope, signal_index
from .capability import Capability
from .engine import Engine, EngineFacts, EventSource, Health, HealthState
from .engine_error import EngineError
from .engine_http import EngineHttp, count, mapping, served_models, text, token_ids

_DEV_MODE: Final = "start it with VLLM_SERVER_DEV_MODE=1"
_ROUTES: Final = {
    Capability.ABORT: "/abort_requests",
    Capability.SLEEP: "/sleep",
    Capability.RESET_PREFIX_CACHE: "/reset_prefix_cache",
    Capability.LOAD_LORA: "/v1/load_lora_adapter",
    Capability.TOKENIZE: "/tokenize",
}
_ADVICE: Final = {
    Capability.ABORT: _DEV_MODE,
    Capability.SLEEP: _DEV_MODE,
    Capability.RESET_PREFIX_CACHE: _DEV_MODE,
    Capability.LOAD_LORA: "start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
    Capability.TOKENIZE: "use a version that has /tokenize",
}
# What vLLM puts around the id of a header: completions number their prompts, chats have one.
_ID_FORMS: Final = ("cmpl-{}-0", "chatcmpl-{}")
# Moving weights to host memory and back takes seconds for large models.
_SLEEP_TIMEOUT_S: Final = 120.0


class VllmEngine(Engine):
    """One vLLM server."""

    def __init__(self, http: EngineHttp) -> None:
        self.replica = http.replica
        self._http = http
        self._capabilities: Capability | None = None

    async def facts(self) -> EngineFacts:
        """Ask for routes, models, configuration and the metrics page."""
        models = served_models(await self._http.get("/v1/models"))
        base = [str(m["id"]) for m in models if not m.get("parent")]
        routes = mapping(mapping(await self._http.find("/openapi.json")).get("paths"))
        capabilities = Capability.NONE
        for capability, route in _ROUTES.items():
            capabilities |= capability if route in routes else Capability.NONE
        config = await self._config("/server_info" in routes)
        sources = _event_sources(await self._http.find("/kv_event_sources"))
        if sources:
            capabilities |= Capability.KV_EVENTS
        if await self._asks_for_priority(config, base):
            capabilities |= Capability.PRIORITY
        self._capabilities = capabilities
        pages, page_tokens = await self._pages()
        lengths = [n for m in models if (n := count(m.get("max_model_len"))) is not None]
        return EngineFacts(
            capabilities=capabilities,
            models=tuple(base),
            adapters=tuple(str(m["id"]) for m in models if m.get("parent")),
            version=text(mapping(await self._http.find("/version")).get("version")),
            num_slots=count(mapping(config.get("scheduler_config")).get("max_num_seqs")),
            context_tokens=max(lengths, default=None),
            kv_tokens=pages * page_tokens if pages and page_tokens else None,
            page_tokens=page_tokens,
            event_sources=sources,
        )

    async def health(self) -> Health:
        """Ask for `/health`, and whether it sleeps."""
        try:
            answer = await self._http.ask("GET", "/health")
            if answer.status == 503:
                return Health(HealthState.LOADING, answer.text)
            self._http.good("GET", "/health", answer)
            is_asleep = await self.is_asleep()
        except EngineError as error:
            return Health(HealthState.UNREACHABLE, str(error))
        return Health(HealthState.ASLEEP if is_asleep else HealthState.READY)

    async def is_asleep(self) -> bool | None:
        """Ask its development route; None without one (its metrics page says it as well)."""
        says = mapping(await self._http.find("/is_sleeping")).get("is_sleeping")
        return says if isinstance(says, bool) else None

    def request_fields(
        self, *, priority: int | None = None, slot: int | None = None, request_id: str | None = None
    ) -> Mapping[str, int | str]:
        """Return the priority, if it counts; its id travels in the header `X-Request-Id`."""
        has_priority = Capability.PRIORITY in (self._capabilities or Capability.NONE)
        return {"priority": priority} if priority is not None and has_priority else {}

    async def abort(self, request_ids: Sequence[str]) -> None:
        """End requests by the `X-Request-Id` that they were sent with."""
        await self._needs(Capability.ABORT)
        if request_ids:  # none at all would mean every request
            ids = [form.format(one) for one in request_ids for form in _ID_FORMS]
            await self._http.post("/abort_requests", {"request_ids": ids}, advice=_DEV_MODE)

    async def sleep(self) -> None:
        """Move its weights to host memory and drop its KV; running requests are aborted."""
        await self._needs(Capability.SLEEP)
        await self._http.post("/sleep?level=1", advice=_DEV_MODE, timeout_s=_SLEEP_TIMEOUT_S)

    async def wake(self) -> None:
        """Move its weights back."""
        await self._needs(Capability.SLEEP)
        await self._http.post("/wake_up", advice=_DEV_MODE, timeout_s=_SLEEP_TIMEOUT_S)

    async def reset_prefix_cache(self) -> None:
        """Forget all prefixes.

        Raises: EngineError too if running requests still hold blocks.
        """
        await self._needs(Capability.RESET_PREFIX_CACHE)
        answer = await self._http.post_json("/reset_prefix_cache", advice=_DEV_MODE)
        if answer.get("success") is False:  # older versions do not say
            raise self._http.error(
                what="POST /reset_prefix_cache",
                fault="was refused: requests still hold blocks",
                advice="drain the replica first, or ask again",
            )

    async def load_lora(self, name: str, path: str) -> None:
        """Load an adapter."""
        await self._needs(Capability.LOAD_LORA)
        await self._http.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})

    async def unload_lora(self, name: str) -> None:
        """Let an adapter go."""
        await self._needs(Capability.LOAD_LORA)
        await self._http.post("/v1/unload_lora_adapter", {"lora_name": name})

    async def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text, with what the model puts before it."""
        await self._needs(Capability.TOKENIZE)
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

    async def _config(self, has_route: bool) -> Mapping[str, object]:
        if not has_route:
            return {}
        info = await self._http.find("/server_info?config_format=json")
        return mapping(mapping(info).get("vllm_config"))

    async def _asks_for_priority(self, config: Mapping[str, object], models: Sequence[str]) -> bool:
        """Whether priorities count: what the configuration says, or how a request ends."""
        policy = text(mapping(config.get("scheduler_config")).get("policy"))
        if policy is not None:
            return policy == "priority"
        if not models:
            return False
        # A server with another policy refuses any priority but 0.
        body = {"model": models[0], "prompt": "a", "max_tokens": 1, "priority": 1}
        return (await self._http.ask("POST", "/v1/completions", body)).status == 200

    async def _pages(self) -> tuple[int | None, int | None]:
        answer = await self._http.ask("GET", "/metrics")
        try:
            row = EnginePage().read(answer.text, 0.0)
        except ValueError:
            return None, None
        columns = (signal_index(Scope.REPLICA, name) for name in ("kv_pages", "kv_page_tokens"))
        pages, page_tokens = (row[column] for column in columns)
        return (int(pages) if pages > 0 else None), (int(page_tokens) if page_tokens > 0 else None)


def _event_sources(answer: object) -> tuple[EventSource, ...]:
    """Read `/kv_event_sources`: one publisher for each data-parallel rank."""
    ranks: Iterable[Mapping[str, object]] = map(mapping, mapping(answer).values())
    return tuple(
        EventSource(
            endpoint=endpoint,
            replay_endpoint=text(rank.get("replay_endpoint")),
            topic=text(rank.get("topic")) or "",
        )
        for rank in ranks
        if rank.get("enable_kv_cache_events") is True
        and (endpoint := text(rank.get("endpoint"))) is not None
    )
