"""What every engine can be asked, whichever it is: the one interface to real and simulated ones.

An engine is asked what it can do (`facts`), as options and versions differ; nothing is assumed.
What it cannot do raises an EngineError that says so.

    capability           llama.cpp             vLLM                    SGLang
    PRIORITY             -                     scheduling policy       --enable-priority-scheduling
    ABORT (by id)        -                     dev mode                always
    SLEEP                - (by itself, idle)   dev mode                --enable-memory-saver
    SAVE_SESSION         --slot-save-path      -                       -
    RESET_PREFIX_CACHE   --slot-save-path      dev mode                always
    LOAD_LORA            -                     runtime LoRA updating   --enable-lora
    PIN_SLOT             always                -                       -
    KV_EVENTS            -                     --kv-events-config      --kv-events-config
    TOKENIZE             always                always                  always

Does not know: HTTP (`engine_http.py`), or which engines a fleet has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from .capability import Capability
from .engine_error import EngineError
from .live_replica import LiveReplica


class HealthState(StrEnum):
    """What an engine says of itself."""

    READY = "ready"
    LOADING = "loading"
    """It answers, and has no model yet or is stopping."""
    ASLEEP = "asleep"
    UNREACHABLE = "unreachable"
    """Nothing, or no health, came from its address in time."""


@dataclass(frozen=True, slots=True)
class Health:
    """How an engine is."""

    state: HealthState
    detail: str = ""
    """What it said, or what went wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSource:
    """Where an engine says that it publishes KV events, in its own words."""

    endpoint: str
    """ZMQ address; one with `*` is bound by the engine, another is connected to."""
    replay_endpoint: str | None
    topic: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What a running engine is; None where it does not say."""

    capabilities: Capability
    models: tuple[str, ...]
    """Names that requests may ask for; adapters are not among them."""
    adapters: tuple[str, ...] = ()
    version: str | None = None
    num_slots: int | None = None
    """Requests that run at a time at most."""
    context_tokens: int | None = None
    """Of one request, prompt and answer."""
    kv_tokens: int | None = None
    """That its KV cache has room for."""
    page_tokens: int | None = None
    event_sources: tuple[EventSource, ...] = ()
    """One for each data-parallel rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A place in which one request runs at a time, and which keeps its KV afterwards."""

    number: int
    context_tokens: int
    is_busy: bool
    held_tokens: int | None
    """Tokens whose KV it holds; None if nothing ran in it yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFile:
    """The KV of a slot that was written to a file, or read from one."""

    name: str
    tokens: int
    size_bytes: int
    span_s: float
    """As the engine measured it."""


class Engine(Protocol):
    """One running engine. Calls wait for it at most as long as their time-out."""

    replica: LiveReplica

    async def facts(self) -> EngineFacts:
        """Ask what it is and what it can do; the calls below go by the last answer."""
        ...

    async def health(self) -> Health:
        """Ask how it is; never raises for what the engine does."""
        ...

    async def is_asleep(self) -> bool | None:
        """Ask whether it sleeps; None if it does not say."""
        ...

    def request_fields(
        self, *, priority: int | None = None, slot: int | None = None, request_id: str | None = None
    ) -> Mapping[str, int | str]:
        """Return what a request's body must carry; empty for what the engine does not know.

        A lower `priority` goes first. `request_id` is what `abort` is called with.
        """
        return {}

    async def abort(self, request_ids: Sequence[str]) -> None:
        """End requests by the ids that they were sent with."""
        raise self.lacks(Capability.ABORT)

    async def sleep(self) -> None:
        """Let it give back its memory; what it holds in its KV cache is gone."""
        raise self.lacks(Capability.SLEEP)

    async def wake(self) -> None:
        """Let it take its memory again."""
        raise self.lacks(Capability.SLEEP)

    async def slots(self) -> tuple[Slot, ...]:
        """Ask what its slots hold."""
        raise self.lacks(Capability.PIN_SLOT)

    async def save_session(self, slot: int, name: str) -> SessionFile:
        """Write a slot's KV to a file in the folder that the engine was started with."""
        raise self.lacks(Capability.SAVE_SESSION)

    async def restore_session(self, slot: int, name: str) -> SessionFile:
        """Read a slot's KV from a file in that folder; what the slot held is gone."""
        raise self.lacks(Capability.SAVE_SESSION)

    async def erase_session(self, slot: int) -> int:
        """Let a slot forget its KV; return how many tokens it held."""
        raise self.lacks(Capability.SAVE_SESSION)

    async def reset_prefix_cache(self) -> None:
        """Let it forget all prefixes that no running request uses."""
        raise self.lacks(Capability.RESET_PREFIX_CACHE)

    async def load_lora(self, name: str, path: str) -> None:
        """Load an adapter from a path on the engine's machine."""
        raise self.lacks(Capability.LOAD_LORA)

    async def unload_lora(self, name: str) -> None:
        """Let an adapter go."""
        raise self.lacks(Capability.LOAD_LORA)

    async def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text, as the engine's model reads it."""
        raise self.lacks(Capability.TOKENIZE)

    def lacks(self, capability: Capability, advice: str = "") -> EngineError:
        """Return the error that says that a capability is not there, and how to get it."""
        r = self.replica
        advice = advice or f"choose an engine or options that have it ({r.engine} does not)"
        return EngineError(
            f"replica '{r.name}' ({r.engine} at {r.url}) has no capability "
            f"'{capability.label}'; {advice}",
            missing=capability,
        )
