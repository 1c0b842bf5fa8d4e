"""Makers shared by all tests: small clusters and workloads. Session fixtures, so that hypothesis
may use them; each returns a function.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from trimtab.env.cluster import OTHER_BYTES_PER_GPU, ClusterSpec, ReplicaSpec, ServerSpec
from trimtab.env.hardware import GPUS, Precision
from trimtab.env.model_profile import MODELS
from trimtab.env.model_store import STORE_VARIABLE, ModelStore
from trimtab.env.simulator import setup
from trimtab.env.simulator.workload import Workload, compile_workload
from trimtab.traces.schema import RequestTrace

MODEL = "llama-3-8b"
# No test may fail because the machine is slow.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
PAGE_TOKENS = 16
BLOCK_TOKENS = 64


def _memory_frac(gpu: str, kv_pages: int | None) -> float:
    """Share of GPU memory that leaves room for so many KV pages."""
    if kv_pages is None:
        return 0.9
    model = MODELS[MODEL]
    precision = Precision.BF16.attention_precision
    page_bytes = model.kv_bytes_per_token(precision, tensor_parallel=1) * PAGE_TOKENS
    used = (kv_pages + 0.5) * page_bytes + model.weight_bytes(Precision.BF16) + OTHER_BYTES_PER_GPU
    return used / GPUS[gpu].hbm_bytes


def _make_cluster(
    gpus: Sequence[str] = ("H100-80G",), *, kv_pages: int | None = None, **limits: object
) -> ClusterSpec:
    """One replica of an 8B model per named GPU; GPUs of one name share a server."""
    names = list(dict.fromkeys(gpus))
    servers = [
        ServerSpec(name=f"s{i}", zone="z0", gpu=gpu, num_gpus=list(gpus).count(gpu))
        for i, gpu in enumerate(names)
    ]
    replicas = [
        ReplicaSpec(
            name=f"r{i}",
            server=f"s{names.index(gpu)}",
            model=MODEL,
            gpu_indices=(list(gpus[:i]).count(gpu),),
            kv_memory_frac=_memory_frac(gpu, kv_pages),
            page_tokens=PAGE_TOKENS,
            **limits,
        )
        for i, gpu in enumerate(gpus)
    ]
    return ClusterSpec(name="made", servers=tuple(servers), replicas=tuple(replicas))


def _make_workload(
    arrival_s: Sequence[float] | np.ndarray,
    input_tokens: Sequence[int] | np.ndarray,
    output_tokens: Sequence[int] | np.ndarray,
    *,
    priority: int | Sequence[int] | np.ndarray = 0,
    prompts: Sequence[Sequence[int]] | None = None,
    **columns: object,
) -> Workload:
    """A workload from columns; `prompts` lists the block hashes of each request."""
    prefix = None
    if prompts is not None:
        offsets = np.cumsum([0, *map(len, prompts)])
        prefix = (offsets, np.array([h for blocks in prompts for h in blocks], dtype=np.uint64))
    trace = RequestTrace.from_columns(
        arrival_s=arrival_s,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        priority=priority,
        prefix=prefix,
        block_tokens=BLOCK_TOKENS,
        **columns,
    )
    return compile_workload(trace, name="made")


def _make_random_workload(
    num_requests: int,
    *,
    rate_rps: float,
    seed: int,
    mean_input_tokens: float = 400.0,
    mean_output_tokens: float = 100.0,
    max_tokens: int = 2000,
    num_prompts: int = 8,
    num_adapters: int = 0,
    max_sequences: int = 1,
) -> Workload:
    """Poisson arrivals, log-normal lengths, two priorities, sessions, and shared prompt heads.

    A third of the requests names one of the adapters, if there are any; a fifth has several
    sequences, if they may.
    """
    rng = np.random.default_rng(seed)
    extra_rng = np.random.default_rng([seed, 1])
    adapters = extra_rng.integers(max(1, num_adapters), size=num_requests)
    names_one = (extra_rng.random(num_requests) < 1 / 3) & (num_adapters > 0)
    is_many = extra_rng.random(num_requests) < 0.2
    many = extra_rng.integers(1, max_sequences + 1, size=num_requests)
    inputs, outputs = (
        np.clip(mean * rng.lognormal(-0.3, 0.8, num_requests), 1, max_tokens).astype(np.int64)
        for mean in (mean_input_tokens, mean_output_tokens)
    )
    group = rng.integers(num_prompts, size=num_requests) if num_prompts else np.zeros(0)
    return _make_workload(
        np.cumsum(rng.exponential(1.0 / rate_rps, num_requests)),
        inputs,
        outputs,
        priority=(rng.random(num_requests) < 0.4).astype(np.int8),
        prompts=[
            [1000 * int(g) + position for position in range(tokens // BLOCK_TOKENS)]
            for g, tokens in zip(group, inputs, strict=True)
        ]
        if num_prompts
        else None,
        session=rng.integers(max(1, num_requests // 4), size=num_requests),
        adapter=[
            f"a{number}" if is_named else None
            for number, is_named in zip(adapters, names_one, strict=True)
        ],
        num_sequences=np.where(is_many, many, 1),
    )


@contextmanager
def _sliding_window(window_tokens: int) -> Iterator[None]:
    """Fleets reset inside have windowed layers that cost as much as a third of the others."""
    made = setup.replica_coefficients

    def with_windows(cluster: ClusterSpec) -> np.ndarray:
        table = made(cluster)
        table["window_tokens"] = window_tokens
        table["window_context_s"] = table["decode_context_s"] / 3
        table["window_attention_s"] = table["prefill_attention_s"] / 3
        return table

    with mock.patch.object(setup, "replica_coefficients", with_windows):
        yield


@pytest.fixture(scope="session")
def make_cluster() -> Callable[..., ClusterSpec]:
    return _make_cluster


@pytest.fixture
def model_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelStore]:
    """An empty store that names are looked up in; afterwards the catalogue is as it was."""
    known = dict(MODELS)
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "models"))
    yield ModelStore(tmp_path / "models")
    MODELS.clear()
    MODELS.update(known)


@pytest.fixture(scope="session")
def make_workload() -> Callable[..., Workload]:
    return _make_workload


@pytest.fixture(scope="session")
def make_random_workload() -> Callable[..., Workload]:
    return _make_random_workload


@pytest.fixture(scope="session")
def sliding_window() -> Callable[[int], AbstractContextManager[None]]:
    return _sliding_window
