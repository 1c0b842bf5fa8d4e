"""Requests of the load: distinct chat requests that share prefixes, as real ones do.

Does not know: who answers them.
"""

import json
import random
import struct
from dataclasses import dataclass
from pathlib import Path

_WORDS = (
    "the of and a to in is you that it he was for on are as with his they at be this have from or "
    "one had by word but not what all were we when your can said there use an each which she do how"
)


@dataclass(frozen=True, slots=True)
class BodyKind:
    """One kind of request."""

    name: str
    prefix_bytes: int
    tail_bytes: int
    num_prefixes: int
    num_requests: int
    is_stream: bool = False


KINDS = (
    BodyKind("2KB", 1600, 350, 64, 20_000),
    BodyKind("32KB", 24_000, 8_000, 16, 2_000),
    BodyKind("2KB-sse", 1600, 350, 64, 20_000, is_stream=True),
)


def _text(rng: random.Random, num_bytes: int) -> str:
    words = _WORDS.split()
    text = " ".join(rng.choice(words) for _ in range(num_bytes // 3))
    return text[:num_bytes]


def write_requests(kind: BodyKind, model: str, path: Path) -> None:
    """Write the requests of a kind, each after its length, as the load reads them."""
    rng = random.Random(7)
    prefixes = [_text(rng, kind.prefix_bytes) for _ in range(kind.num_prefixes)]
    with path.open("wb") as file:
        for number in range(kind.num_requests):
            body = json.dumps(
                {
                    "model": model,
                    "messages": [
                        {"role": "system", "content": prefixes[number % kind.num_prefixes]},
                        {"role": "user", "content": f"{number} {_text(rng, kind.tail_bytes)}"},
                    ],
                    "max_tokens": 16,
                    "stream": kind.is_stream,
                }
            ).encode()
            head = (
                "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
                "user-agent: load\r\naccept: */*\r\nauthorization: Bearer sk-benchmark\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            ).encode()
            file.write(struct.pack("=I", len(head) + len(body)) + head + body)
