"""The distribution that sites are drawn from.

A site is a function of its split and number alone, and of which recordings there are.

Does not know: what a site's capacity is (`capacity.py`).
Source: the distribution of the project's headroom measurement.
"""

from dataclasses import dataclass

import numpy as np

from ..belief import Belief
from ..cluster import ReplicaSpec
from ..hardware import GPUS
from ..latency import iteration_time_s
from ..model_profile import MODELS
from ..replica_latency import replica_latency
from ..replica_memory import free_kv_bytes, page_bytes
from .library import TraceLibrary, recordings_of
from .regime import CHANGING, RegimeKind
from .site import Pool, Site
from .split import Split, site_rng
from .traffic import MOST_EIGHTHS, SYNTHETIC, Shape, Traffic

# Least GPUs that hold a replica, by model; more where its KV would be too small.
_MODELS: dict[str, int] = {
    "llama-3-8b": 1,
    "qwen3-14b": 1,
    "qwen3-32b": 2,
    "llama-3-70b": 4,
    "qwen3-30b-a3b": 1,
}
_GPUS = ("A100-80G", "H100-80G", "L40S-48G", "H200-141G")
# Most GPUs of a replica without NVLink: beyond it all-reduces over PCIe take most of the time.
_MOST_PCIE_GPUS = 2
# KV tokens that every replica has room for, with whole pages.
_LEAST_KV_TOKENS = 40_000
_REPLICAS = (4, 32)
_SCRAPE_S = (0.05, 2.0)
_BELIEF_FACTOR = (0.7, 1.4)
_RIGHT_BELIEFS_FRAC = 0.25
_LOAD_FRACS = (0.4, 1.1)
# Usual load of a changing site; its overload regime has 25 / 16 of it.
_CHANGING_LOAD_FRACS = (0.6, 0.9)
_CHANGING_FRAC = 0.5
_URGENT_FRACS = (0.2, 0.5, 0.8)
# Urgent TTFT limit, in times to prefill this many tokens at the fleet's mean speed; tight to loose.
_TTFT_TOKENS, _TTFT_FACTORS = 2048.0, (3.0, 8.0)
# Urgent TPOT limit, in mean times of iterations of 32 sequences with and without a whole chunk.
_TPOT_BATCH, _TPOT_FACTORS = (32.0, 48_000.0), (1.0, 2.4)
# Limits of the second class over those of the urgent one, as the defaults of `ServiceLevels`.
_TTFT_RATIO, _TPOT_RATIO = 4.0, 2.0
_MOST_OVERLAYS = 3


def sample_site(
    split: Split, number: int, traces: TraceLibrary | None, *, is_changing: bool | None = None
) -> Site:
    """Return a site of a split; the same arguments give the same site.

    Without traces, all traffic is synthetic. `is_changing` asks for a site with regimes or without;
    None draws it.

    Raises:
        ValueError: the number is below 0.
    """
    rng = site_rng(split, number)
    model = str(rng.choice(list(_MODELS)))
    pools = _pools(rng, model)
    kv_frac = float(rng.choice([1.0, 0.5]))
    traffic = _traffic(rng, Shape(str(rng.choice(list(Shape)))), traces)
    ttft_slo_s, tpot_slo_s = _limits(rng, model, pools)
    urgent_frac = float(rng.choice(_URGENT_FRACS))
    scrape_interval_s = _log_uniform(rng, _SCRAPE_S)
    slowdown_strength = float(rng.choice([0.0, 0.5, 1.0]))
    beliefs = _beliefs(rng, pools)
    steady_load, changing_load = rng.uniform(*_LOAD_FRACS), rng.uniform(*_CHANGING_LOAD_FRACS)
    if is_changing is None:
        is_changing = bool(rng.random() < _CHANGING_FRAC)
    regimes: tuple[RegimeKind, ...] = CHANGING if is_changing else ()
    return Site(
        split=split,
        number=number,
        model=model,
        pools=pools,
        kv_frac=kv_frac,
        traffic=traffic,
        ttft_slo_s=ttft_slo_s,
        tpot_slo_s=tpot_slo_s,
        urgent_frac=urgent_frac,
        scrape_interval_s=scrape_interval_s,
        slowdown_strength=slowdown_strength,
        beliefs=beliefs,
        load_frac=float(changing_load if is_changing else steady_load),
        regimes=regimes,
    )


def other_traffic(site: Site, shape: Shape, traces: TraceLibrary | None) -> Traffic:
    """Return the traffic of another shape at a site, for its regimes; its own if that has it."""
    if shape is site.traffic.shape:
        return site.traffic
    rng = site_rng(site.split, site.number, 1, list(Shape).index(shape))
    return _traffic(rng, shape, traces)


def _log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(*np.log(bounds))))


def _pools(rng: np.random.Generator, model: str) -> tuple[Pool, ...]:
    """One to three kinds of GPU, each with one replica at least."""
    low, high = _REPLICAS
    num_replicas = int(np.clip(np.floor(_log_uniform(rng, (low, high + 1.0))), low, high))
    num_gpus = {gpu: _gpus_per_replica(gpu, model) for gpu in _GPUS}
    fitting = [
        gpu for gpu in _GPUS if GPUS[gpu].nvlink_bytes_per_s or num_gpus[gpu] <= _MOST_PCIE_GPUS
    ]
    kinds = rng.permutation(fitting)[: int(rng.integers(1, 4))]
    shares = rng.dirichlet(np.full(kinds.size, 2.0))
    counts = 1 + rng.multinomial(num_replicas - kinds.size, shares)
    return tuple(
        Pool(gpu=str(gpu), num_replicas=int(count), gpus_per_replica=num_gpus[str(gpu)])
        for gpu, count in zip(kinds, counts, strict=True)
    )


def _replica(model: str, num_gpus: int) -> ReplicaSpec:
    return ReplicaSpec(name="r", server="s", model=model, gpu_indices=tuple(range(num_gpus)))


def _gpus_per_replica(gpu: str, model: str) -> int:
    """Least power of two of GPUs that leaves enough KV."""
    num_gpus = _MODELS[model]
    while num_gpus < 8:
        replica = _replica(model, num_gpus)
        room_bytes = free_kv_bytes(GPUS[gpu], MODELS[model], replica)
        tokens = room_bytes / page_bytes(MODELS[model], replica) * replica.page_tokens
        if tokens >= _LEAST_KV_TOKENS:
            break
        num_gpus *= 2
    return num_gpus


@dataclass(frozen=True, slots=True)
class _Pace:
    """Unloaded times of a replica, s."""

    prefill_s: float
    step_s: float


def _pace(pool: Pool, model: str) -> _Pace:
    replica = _replica(model, pool.gpus_per_replica)
    table = replica_latency(GPUS[pool.gpu], MODELS[model], replica)
    record = table.view(np.recarray)[0]
    chunk = float(replica.max_batch_tokens)
    chunk_s = iteration_time_s(record, chunk, 0.0, 0.0, 0.0)
    mixed_s = iteration_time_s(record, chunk, 0.0, *_TPOT_BATCH)
    decode_s = iteration_time_s(record, 0.0, 0.0, *_TPOT_BATCH)
    return _Pace(chunk_s * _TTFT_TOKENS / chunk, 0.5 * (mixed_s + decode_s))


def _limits(
    rng: np.random.Generator, model: str, pools: tuple[Pool, ...]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """TTFT and TPOT limits of both classes."""
    counts = np.array([pool.num_replicas for pool in pools], float)
    paces = [_pace(pool, model) for pool in pools]
    # The harmonic mean: what the fleet does a second, over its replicas.
    prefill_s = counts.sum() / (counts / [pace.prefill_s for pace in paces]).sum()
    step_s = counts.sum() / (counts / [pace.step_s for pace in paces]).sum()
    ttft_s = float(prefill_s) * _log_uniform(rng, _TTFT_FACTORS)
    tpot_s = float(step_s) * _log_uniform(rng, _TPOT_FACTORS)
    return (ttft_s, _TTFT_RATIO * ttft_s), (tpot_s, _TPOT_RATIO * tpot_s)


def _beliefs(rng: np.random.Generator, pools: tuple[Pool, ...]) -> tuple[Belief, ...]:
    is_right = bool(rng.random() < _RIGHT_BELIEFS_FRAC)
    drawn = tuple(
        Belief(
            gpu=pool.gpu,
            compute_factor=_log_uniform(rng, _BELIEF_FACTOR),
            memory_factor=_log_uniform(rng, _BELIEF_FACTOR),
        )
        for pool in pools
    )
    return () if is_right else drawn


def _traffic(rng: np.random.Generator, shape: Shape, traces: TraceLibrary | None) -> Traffic:
    known = [name for name in recordings_of(shape) if traces is not None and traces.has(name)]
    # As many draws for every shape: what follows does not depend on which recordings there are.
    choice, eighths = rng.random(), int(rng.integers(1, MOST_EIGHTHS + 1))
    num_overlays = int(rng.integers(1, _MOST_OVERLAYS + 1))
    is_scaled = shape in (Shape.LONG_PROMPTS, Shape.AGENT_SESSIONS)
    return Traffic(
        shape=shape,
        recording=known[int(choice * len(known))] if known else SYNTHETIC,
        length_eighths=eighths if is_scaled else 8,
        num_overlays=num_overlays if shape is Shape.CODE_BURSTS else 0,
    )
