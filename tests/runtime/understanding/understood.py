"""Calls as a gateway would make them, and how they end."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from trimtab.runtime.dispatcher.request import Ending, Placement, RequestEnd
from trimtab.runtime.understanding.openai_reader import OpenAiReader, ReaderConfig, ReadFacts
from trimtab.runtime.understanding.reader import Call
from trimtab.runtime.understanding.served_models import ServedModel

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MODELS = (
    ServedModel(name="llama", model_index=0, engine_name="llama", context_tokens=4096),
    ServedModel(name="small", model_index=1, engine_name="/models/small.gguf", context_tokens=512),
    ServedModel(name="sql", model_index=0, engine_name="sql", adapter="sql", context_tokens=4096),
)


@dataclass(frozen=True, kw_only=True)
class FakeTenant:
    name: str = "acme"
    priority: int = 0
    ttft_slo_s: float = 2.0
    tpot_slo_s: float = inf
    weight: float = 1.0
    models: frozenset[str] | None = None
    may_name_flow: bool = False


def make_reader(config: ReaderConfig | None = None, **options: Any) -> OpenAiReader:
    return OpenAiReader(MODELS, config or ReaderConfig(), **options)


def make_call(
    body: Any,
    path: str = CHAT,
    *,
    headers: Mapping[bytes, bytes] | None = None,
    tenant: FakeTenant | None = None,
) -> Call:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Call(path, dict(headers or {}), raw, tenant or FakeTenant(), "r-1", 10.0)


def chat(*messages: tuple[str, str], model: str = "llama", **more: Any) -> dict[str, Any]:
    turns = [{"role": role, "content": content} for role, content in messages]
    return {"model": model, "messages": turns, **more}


def facts_of(reader: OpenAiReader, body: Any, path: str = CHAT, **more: Any) -> ReadFacts:
    facts = reader.read(make_call(body, path, **more)).facts
    assert isinstance(facts, ReadFacts)
    return facts


def end(
    reader: OpenAiReader,
    facts: ReadFacts,
    output_tokens: int,
    ending: Ending = Ending.FINISHED,
    input_tokens: int | None = None,
) -> None:
    placement = Placement(
        facts=facts, replica=0, number=1, hit_tokens=0, predicted_ttft_s=0.1, placed_at_s=10.0
    )
    what = RequestEnd(
        ending=ending,
        status=200,
        ended_at_s=12.0,
        output_tokens=output_tokens,
        input_tokens=input_tokens,
    )
    reader.on_ended(placement, what)
