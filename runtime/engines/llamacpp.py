"""llama.cpp's own server: slots, sessions in files, no priority and no events.

A request is ended by closing its connection. The server falls asleep by itself when idle
(--sleep-idle-seconds) and wakes with the next request; `facts` and `slots` wake it too, `health`
does not. Adapters are loaded at its start only.

Does not know: who moves a session, or why (`kv_move.py`).
Source: tools/server/README.md of llama.cpp; answers of xllamacpp 2026.10.11549.
"""

from collections.abc import Mapping

from .capability import Capability
from .engine import Engine, EngineFacts, Health, HealthState, SessionFile, Slot
from .engine_error import EngineError
from .engine_http import (
    EngineHttp,
    count,
    items,
    mapping,
    served_models,
    text,
    token_ids,
)

_SAVING = Capability.SAVE_SESSION | Capability.RESET_PREFIX_CACHE
_NO_FOLDER = "start it with --slot-save-path DIR"
# An action that no server knows: one with a folder refuses it with 400, one without with 501.
_PROBE_PATH = "/slots/0?action=ask"
_NOT_SUPPORTED = 501


class LlamaCppEngine(Engine):
    """One llama.cpp server."""

    def __init__(self, http: EngineHttp) -> None:
        self.replica = http.replica
        self._http = http
        self._can_save: bool | None = None

    async def facts(self) -> EngineFacts:
        """Ask for properties, models, and whether slots can be saved."""
        props = mapping(await self._http.get("/props"))
        models = served_models(await self._http.get("/v1/models"))
        adapters = items(await self._http.find("/lora-adapters"))
        num_slots = count(props.get("total_slots"))
        settings = mapping(props.get("default_generation_settings"))
        context_tokens = count(settings.get("n_ctx"))
        can_save = await self._asks_whether_it_saves()
        return EngineFacts(
            capabilities=Capability.PIN_SLOT
            | Capability.TOKENIZE
            | (_SAVING if can_save else Capability.NONE),
            models=tuple(str(model["id"]) for model in models),
            adapters=tuple(filter(None, (text(one.get("path")) for one in adapters))),
            version=text(props.get("build_info")),
            num_slots=num_slots,
            context_tokens=context_tokens,
            kv_tokens=num_slots * context_tokens if num_slots and context_tokens else None,
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
        """Ask its properties; None if its version does not say."""
        says = mapping(await self._http.find("/props")).get("is_sleeping")
        return says if isinstance(says, bool) else None

    def request_fields(
        self, *, priority: int | None = None, slot: int | None = None, request_id: str | None = None
    ) -> Mapping[str, int | str]:
        """Return the slot."""
        return {} if slot is None else {"id_slot": slot}

    async def slots(self) -> tuple[Slot, ...]:
        """Ask for all slots; that wakes a sleeping server.

        Raises: EngineError if the server was started without them.
        """
        answer = await self._http.ask("GET", "/slots")
        if answer.status == _NOT_SUPPORTED:
            raise self.lacks(Capability.PIN_SLOT, "start it with --slots")
        return tuple(
            Slot(
                number=count(one.get("id")) or 0,
                context_tokens=count(one.get("n_ctx")) or 0,
                is_busy=one.get("is_processing") is True,
                held_tokens=count(one.get("n_prompt_tokens")),
            )
            for one in items(await self._http.get("/slots"))
        )

    async def save_session(self, slot: int, name: str) -> SessionFile:
        """Write a slot's KV to a file; a busy slot is waited for."""
        answer = await self._slot_action(slot, "save", {"filename": name})
        return self._file(answer, name, ("n_saved", "n_written", "save_ms"))

    async def restore_session(self, slot: int, name: str) -> SessionFile:
        """Read a slot's KV from a file; one of another model is refused."""
        answer = await self._slot_action(slot, "restore", {"filename": name})
        return self._file(answer, name, ("n_restored", "n_read", "restore_ms"))

    async def erase_session(self, slot: int) -> int:
        """Let a slot forget its KV."""
        return count((await self._slot_action(slot, "erase", {})).get("n_erased")) or 0

    async def reset_prefix_cache(self) -> None:
        """Let every slot forget its KV; a busy one does once its request has ended."""
        for slot in await self.slots():
            await self.erase_session(slot.number)

    async def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text, special ones as they stand in it."""
        body = {"content": text, "parse_special": True}
        tokens = token_ids(await self._http.post_json("/tokenize", body))
        if tokens is None:
            raise self._http.error(
                what="POST /tokenize", fault="answered no tokens", advice="check its version"
            )
        return tokens

    async def _asks_whether_it_saves(self) -> bool:
        answer = await self._http.ask("POST", _PROBE_PATH, {})
        self._can_save = answer.status == 400
        return self._can_save

    async def _slot_action(
        self, slot: int, action: str, body: Mapping[str, str]
    ) -> Mapping[str, object]:
        if self._can_save is None:
            await self._asks_whether_it_saves()
        if not self._can_save:
            raise self.lacks(Capability.SAVE_SESSION, _NO_FOLDER)
        return await self._http.post_json(
            f"/slots/{slot}?action={action}",
            body,
            advice="a file must be there, of the same model, and fit a slot",
        )

    def _file(
        self, answer: Mapping[str, object], name: str, fields: tuple[str, str, str]
    ) -> SessionFile:
        tokens, size_bytes = (count(answer.get(field)) for field in fields[:2])
        span_ms = mapping(answer.get("timings")).get(fields[2])
        if tokens is None or size_bytes is None or not isinstance(span_ms, int | float):
            raise self._http.error(
                what=f"slot file '{name}'",
                fault=f"was answered {dict(answer)}",
                advice=f"expected {fields}",
            )
        return SessionFile(name=name, tokens=tokens, size_bytes=size_bytes, span_s=span_ms / 1e3)
