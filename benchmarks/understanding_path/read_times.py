"""What understanding a request costs: CPU time of each step, the least of many rounds.

Does not know: what is done with the figures (`understanding.py`).
"""

import json
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from types import MappingProxyType

import numpy as np

from trimtab.agents.output_length import LengthClass, OutputLengths
from trimtab.agents.output_length_kernel import NUM_QUANTILES, WHOLE, learn_in, predict_in
from trimtab.agents.prompt_clusters import cluster_in, new_clusters
from trimtab.runtime.dispatcher.request import Ending, Placement, RequestEnd
from trimtab.runtime.understanding.openai_body import decode_body
from trimtab.runtime.understanding.openai_reader import OpenAiReader
from trimtab.runtime.understanding.reader import Call
from trimtab.runtime.understanding.served_models import ServedModel

# As an `openai` client sends them.
_HEADERS = MappingProxyType(
    {
        b"host": b"127.0.0.1:8000",
        b"accept": b"application/json",
        b"accept-encoding": b"gzip, deflate",
        b"authorization": b"Bearer sk-0123456789",
        b"content-length": b"2048",
        b"content-type": b"application/json",
        b"user-agent": b"OpenAI/Python 1.109.1",
        b"x-stainless-lang": b"python",
        b"x-stainless-os": b"Linux",
        b"x-stainless-retry-count": b"0",
    }
)


@dataclass(frozen=True)
class _Tenant:
    name: str = "default"
    priority: int = 0
    ttft_slo_s: float = inf
    tpot_slo_s: float = inf
    weight: float = 1.0
    models: None = None
    may_name_flow: bool = True


def least_us(step: Callable[[], object], *, calls: int = 100, rounds: int = 300) -> float:
    """Return the microseconds of one call in the fastest of some rounds."""
    return min(timeit.repeat(step, number=calls, repeat=rounds)) / calls * 1e6


def text_of(num_bytes: int, seed: int) -> str:
    """Return some English text of this repository, from a place that the seed chooses."""
    docs = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
    text = "\n".join(doc.read_text(encoding="utf-8") for doc in docs)
    text = text.encode("ascii", "ignore").decode()
    start = (seed * 7919) % (len(text) // 2)
    return (text[start:] + text)[:num_bytes]


def chat_call(num_bytes: int, model: str = "llama", seed: int = 0) -> Call:
    """Return a chat of about so many bytes: a shared system prompt, then text of its own."""
    body = {
        "model": model,
        "messages": [
            {"role": "system", "content": "You are a careful assistant. " * 8},
            {"role": "user", "content": text_of(num_bytes - 430, seed)},
        ],
        "max_tokens": 256,
        "temperature": 0.7,
        "stream": True,
    }
    raw = json.dumps(body).encode()
    return Call("/v1/chat/completions", dict(_HEADERS), raw, _Tenant(), f"r-{seed}", 1.0)


def make_reader() -> OpenAiReader:
    """Return a reader that has learned from some thousand requests."""
    reader = OpenAiReader(
        [
            ServedModel(name="llama", model_index=0, engine_name="llama"),
            ServedModel(name="alias", model_index=0, engine_name="llama"),
        ]
    )
    rng = np.random.default_rng(0)
    calls = [chat_call(1200 + 40 * k, seed=k) for k in range(50)]
    for _ in range(40):
        for call in calls:
            _end(reader, call, int(rng.lognormal(4.5, 0.8)) + 1)
    return reader


def _end(reader: OpenAiReader, call: Call, output_tokens: int) -> None:
    """Let a request come and end."""
    facts = reader.read(call).facts
    placement = Placement(
        facts=facts, replica=0, number=1, hit_tokens=0, predicted_ttft_s=0.1, placed_at_s=1.0
    )
    end = RequestEnd(
        ending=Ending.FINISHED,
        status=200,
        ended_at_s=2.0,
        output_tokens=output_tokens,
        input_tokens=len(call.body) // 4,
    )
    reader.on_ended(placement, end)


def read_times_us() -> dict[str, float]:
    """Return what each step costs, in microseconds; calls go through 50 different requests."""
    reader, times = make_reader(), {}
    for label, num_bytes, model in (
        ("read_2_kb", 2048, "llama"),
        ("read_2_kb_rewritten", 2048, "alias"),
        ("read_32_kb", 32_768, "llama"),
    ):
        calls = [chat_call(num_bytes, model, seed) for seed in range(50)]
        times[label] = (
            least_us(lambda calls=calls: [*map(reader.read, calls)], calls=1, rounds=500) / 50
        )
        decode = [call.body for call in calls]
        if model == "llama":
            name = label.replace("read", "of_which_json")
            times[name] = (
                least_us(lambda d=decode: [*map(decode_body, d)], calls=1, rounds=500) / 50
            )
    call = chat_call(2048)
    facts = reader.read(call).facts
    placement = Placement(
        facts=facts, replica=0, number=1, hit_tokens=0, predicted_ttft_s=0.1, placed_at_s=1.0
    )
    end = RequestEnd(
        ending=Ending.FINISHED, status=200, ended_at_s=2.0, output_tokens=80, input_tokens=500
    )
    times["learn_from_an_end"] = least_us(lambda: reader.on_ended(placement, end))
    return times | _part_times_us()


def _part_times_us() -> dict[str, float]:
    """Return what predicting, learning and clustering cost by themselves."""
    lengths, clusters = OutputLengths.new(), new_clusters()
    request = LengthClass(tenant=1, input_tokens=500, most_tokens=1000, session=3, head=4)
    keys, out = lengths.keys(request), np.zeros(NUM_QUANTILES)
    for tokens in range(500):
        lengths.learn(keys, tokens)
    prompts = [np.frombuffer(text_of(2048, seed).encode(), np.uint8) for seed in range(50)]
    state = lengths.state

    def cluster_all() -> None:
        for prompt in prompts:
            cluster_in(clusters, prompt)

    return {
        "predict_length": least_us(lambda: predict_in(state, keys, 1000.0, out)),
        "learn_length": least_us(lambda: learn_in(state, keys, 80.0, WHOLE, 1000.0, out)),
        "cluster_2_kb": least_us(cluster_all, calls=1, rounds=500) / 50,
    }
