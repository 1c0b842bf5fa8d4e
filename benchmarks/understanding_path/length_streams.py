"""Streams of requests whose answers' lengths are known, to predict them one after another.

Real ones are recordings; what they lack (tenants, applications) they lack here too. The drifting
one is made: a mean that wanders, jumps, and differs by tenant.

Does not know: predictors.
"""

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trimtab.traces.bundled import load_bundled

# s to the first token, and s a token after it, of an answer: when its length is known
FIRST_TOKEN_S, TOKEN_S = 0.5, 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One request and the length of its answer."""

    arrived_at_s: float
    input_tokens: int
    output_tokens: int
    most_tokens: int = 131_072
    is_limited: bool = False
    tenant: int = 1
    application: int = 0
    session: int = 0
    cluster: int = 0

    @property
    def ended_at_s(self) -> float:
        """When its length is known."""
        return self.arrived_at_s + FIRST_TOKEN_S + TOKEN_S * self.output_tokens


def bundled(*names: str) -> list[Answer]:
    """Requests of bundled traces, one tenant each, in order of arrival."""
    answers = []
    for tenant, name in enumerate(names, start=1):
        trace = load_bundled(name)
        columns = (trace.arrival_s, trace.input_tokens, trace.output_tokens)
        answers += [
            Answer(arrived_at_s=float(at), input_tokens=int(i), output_tokens=int(o), tenant=tenant)
            for at, i, o in zip(*columns, strict=True)
        ]
    return sorted(answers, key=lambda answer: answer.arrived_at_s)


def drifting(num: int = 20_000, seed: int = 0) -> list[Answer]:
    """Four tenants of two applications each, whose means wander and jump, with limits."""
    rng = np.random.default_rng(seed)
    log_mean = rng.uniform(3.0, 6.5, (4, 2))
    log_std = rng.uniform(0.3, 1.0, (4, 2))
    answers = []
    for k in range(num):
        log_mean += 0.003 * rng.standard_normal(log_mean.shape)
        if rng.random() < 1.0 / 2000.0:
            log_mean[rng.integers(4), rng.integers(2)] = rng.uniform(2.0, 7.0)
        tenant, application = int(rng.choice(4, p=(0.5, 0.3, 0.15, 0.05))), int(rng.integers(2))
        mean, std = log_mean[tenant, application], log_std[tenant, application]
        most = int(rng.choice((128, 512, 4096)))
        length = max(1, min(most, round(rng.lognormal(mean, std))))
        answers.append(
            Answer(
                arrived_at_s=0.1 * k,
                input_tokens=int(rng.lognormal(6.0, 1.0)) + 1,
                output_tokens=length,
                most_tokens=most,
                is_limited=True,
                tenant=tenant + 1,
                application=application + 1,
            )
        )
    return answers


def mooncake(shared: Path, name: str) -> list[Answer]:
    """Requests of a Mooncake trace; its second block of 512 tokens stands for the session."""
    path = shared / "traces" / "mooncake" / f"{name}_trace.jsonl.gz"
    with gzip.open(path, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        Answer(
            arrived_at_s=row["timestamp"] / 1000.0,
            input_tokens=max(1, row["input_length"]),
            output_tokens=max(1, row["output_length"]),
            session=row["hash_ids"][min(1, len(row["hash_ids"]) - 1)] + 1,
        )
        for row in rows
    ]


def agents(shared: Path, num_sessions: int = 120) -> list[Answer]:
    """Turns of coding agents (Weka), sessions beginning 60 s apart."""
    path = shared / "traces" / "weka_agentic" / "sessions.jsonl.gz"
    answers = []
    with gzip.open(path, "rt") as lines:
        for number, line in zip(range(num_sessions), lines, strict=False):
            for row in json.loads(line)["requests"]:
                if "out" in row and row["out"] > 0:
                    answers.append(
                        Answer(
                            arrived_at_s=60.0 * number + row["t"],
                            input_tokens=row["in"],
                            output_tokens=row["out"],
                            application=hash_of(row["model"]),
                            session=number + 1,
                        )
                    )
    return sorted(answers, key=lambda answer: answer.arrived_at_s)


def hash_of(name: str) -> int:
    """Return a small number for a name, the same in every run."""
    return 1 + sum(256**k * byte for k, byte in enumerate(name.encode())) % 1_000_003


def clients(shared: Path, model: str = "m-large", num: int = 20_000, seed: int = 0) -> list[Answer]:
    """Clients of a model at Alibaba (ServeGen) as tenants: lengths drawn from their own tables.

    Input and output lengths are drawn apart, as the source has them; a table holds for six hours,
    and the stream passes through all of them.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(
        shared / "traces" / "servegen" / "token_pmf.parquet", filters=[("model", "==", model)]
    ).to_pylist()
    rates = pq.read_table(
        shared / "traces" / "servegen" / "client_rates.parquet", filters=[("model", "==", model)]
    ).to_pylist()
    weight: dict[int, float] = {}
    for row in rates:
        weight[row["client"]] = weight.get(row["client"], 0.0) + row["rate_rps"]
    tables: dict[float, dict[int, dict[str, tuple[list[float], list[float]]]]] = {}
    for row in table:
        by_client = tables.setdefault(row["t_s"], {}).setdefault(row["client"], {})
        by_client[row["field"]] = (row["value"], row["prob"])
    rng = np.random.default_rng(seed)
    answers: list[Answer] = []
    for part, at_s in enumerate(sorted(tables)):
        here = {c: t for c, t in tables[at_s].items() if len(t) >= 2 and c in weight}
        names = sorted(here)
        share = np.array([weight[c] for c in names])
        for k in range(num // len(tables)):
            client = int(rng.choice(names, p=share / share.sum()))
            inputs, outputs = here[client]["input_tokens"], here[client]["output_tokens"]
            answers.append(
                Answer(
                    arrived_at_s=part * 1000.0 + k * 1000.0 / (num // len(tables)),
                    input_tokens=max(1, int(_draw(rng, *inputs))),
                    output_tokens=max(1, int(_draw(rng, *outputs))),
                    tenant=client + 1,
                )
            )
    return answers


def _draw(rng: np.random.Generator, values: list[float], shares: list[float]) -> float:
    """Return a value drawn by shares that add up to about 1."""
    place = int(np.searchsorted(np.cumsum(shares), rng.random() * sum(shares)))
    return values[min(place, len(values) - 1)]


def streams(shared: Path | None) -> Iterator[tuple[str, Callable[[], list[Answer]]]]:
    """Name and maker of every stream that the data at hand allow."""
    yield "azure-conv", lambda: bundled("azure-conv")
    yield "azure-code", lambda: bundled("azure-code")
    yield "azure-both", lambda: bundled("azure-conv", "azure-code")
    yield "drifting", drifting
    if shared is not None and (shared / "traces" / "mooncake").exists():
        yield "mooncake-conversation", lambda: mooncake(shared, "conversation")
        yield "weka-agents", lambda: agents(shared)
        yield "servegen-m-large", lambda: clients(shared)
