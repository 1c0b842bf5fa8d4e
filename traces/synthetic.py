"""Synthetic chat load: bursty arrivals, growing conversations, shared system prompts.

A request either opens a conversation or, if one has been waiting for its user's think time,
is its next turn: its prompt is the earlier prompt and answer with a new message behind. Some
conversations begin with one of a few shared prompts. Arrivals do not wait for answers (open
loop), so on a slow fleet a turn may come before the answer that it continues. In the first
minutes fewer conversations wait than later, so a short trace has fewer follow-ups.

Does not know: replicas, caches or text.
Source: workload of the project's prototype (research/prototype.md, section 2).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from .arrivals import ArrivalProcess, arrivals_within, first_arrivals
from .hashing import chain_hashes, mix_all
from .schema import DEFAULT_BLOCK_TOKENS, RequestTrace, TraceSource

_MAX_PROBES = 64  # earlier requests looked at for one that has no next turn yet


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticConfig:
    """A synthetic load; give exactly one of `num_requests` and `span_s`."""

    num_requests: int | None = None
    """length of the trace in requests"""
    span_s: float | None = None
    """length of the trace in seconds"""
    rate_rps: float = 10.0
    """mean rate in requests per second"""
    seed: int = 0
    """the same seed and settings give the same trace"""

    burst_log_rate_std: float = 0.3
    """standard deviation of the wandering (AR(1)) log rate; 0 for none"""
    burst_memory_s: float = 30.0
    """seconds after which the wandering rate has forgotten all but 1/e"""
    burst_count_cv: float = 0.5
    """coefficient of variation of the gamma factor on each second's mean; 0 for Poisson"""
    ramp_amplitude_frac: float = 0.3
    """amplitude of the slow sine on the rate, as a share of it"""
    ramp_period_s: float = 600.0
    """period of the slow sine in seconds"""

    input_mean_tokens: float = 1000.0
    """mean of the log-normal first prompt, a shared prompt not counted"""
    input_log_std: float = 0.9
    """standard deviation of the log of prompt and message lengths"""
    max_input_tokens: int = 12_000
    """longest prompt; a conversation that would pass it ends"""
    message_mean_tokens: float = 200.0
    """mean of the log-normal new message of a follow-up turn"""
    output_mean_tokens: float = 200.0
    """mean of the log-normal answer"""
    output_log_std: float = 0.8
    """standard deviation of the log of the answer length"""
    max_output_tokens: int = 4_000
    """longest answer"""

    follow_up_frac: float = 0.4
    """share of requests that continue a conversation if one is waiting"""
    min_think_s: float = 10.0
    """least seconds between the arrivals of two turns"""
    mean_think_s: float = 60.0
    """mean seconds (exponential) on top of the least"""

    num_shared_prompts: int = 48
    """shared system prompts; the k-th is used in proportion to 1/k"""
    shared_prompt_tokens: int = 2048
    """length of each shared prompt"""
    shared_prompt_frac: float = 0.3
    """share of conversations that begin with a shared prompt"""

    urgent_frac: float = 0.5
    """share of conversations of priority 0; the others have 1"""
    urgent_ttft_slo_s: float = 0.5
    """limit on time to first token, priority 0"""
    normal_ttft_slo_s: float = 2.0
    """limit on time to first token, priority 1"""
    urgent_tpot_slo_s: float = 0.05
    """limit on time per output token, priority 0"""
    normal_tpot_slo_s: float = 0.1
    """limit on time per output token, priority 1"""

    model: str = "default"
    """model of every request"""
    tenant: str = "default"
    """tenant of every request"""
    block_tokens: int = DEFAULT_BLOCK_TOKENS
    """tokens a prefix block"""

    def __post_init__(self) -> None:
        if (self.num_requests is None) == (self.span_s is None):
            msg = (
                "give exactly one of num_requests and span_s, "
                f"got num_requests={self.num_requests} and span_s={self.span_s}"
            )
            raise ValueError(msg)
        for name in _POSITIVE_FIELDS:
            value = getattr(self, name)
            if value is not None and not 0.0 < value < float("inf"):
                msg = f"{name} must be finite and above 0, got {value}"
                raise ValueError(msg)
        for name in _NOT_NEGATIVE_FIELDS:
            if not 0.0 <= getattr(self, name) < float("inf"):
                msg = f"{name} must be finite, at least 0, got {getattr(self, name)}"
                raise ValueError(msg)
        for name in _FRAC_FIELDS:
            if not 0.0 <= getattr(self, name) <= 1.0:
                msg = f"{name} must be in [0, 1], got {getattr(self, name)}"
                raise ValueError(msg)
        if self.shared_prompt_frac > 0.0 and self.shared_prompt_tokens >= self.max_input_tokens:
            msg = (
                f"shared_prompt_tokens {self.shared_prompt_tokens} must be below "
                f"max_input_tokens {self.max_input_tokens}; shorten the shared prompts"
            )
            raise ValueError(msg)


_POSITIVE_FIELDS = (
    *("num_requests", "span_s", "rate_rps", "burst_memory_s", "ramp_period_s"),
    *("input_mean_tokens", "max_input_tokens", "message_mean_tokens", "output_mean_tokens"),
    *("max_output_tokens", "mean_think_s", "num_shared_prompts", "shared_prompt_tokens"),
    *("urgent_ttft_slo_s", "normal_ttft_slo_s", "urgent_tpot_slo_s", "normal_tpot_slo_s"),
    "block_tokens",
)
_NOT_NEGATIVE_FIELDS = (
    *("burst_log_rate_std", "burst_count_cv", "input_log_std", "output_log_std", "min_think_s"),
    "seed",
)
_FRAC_FIELDS = ("ramp_amplitude_frac", "follow_up_frac", "shared_prompt_frac", "urgent_frac")


def generate(config: SyntheticConfig) -> RequestTrace:
    """The trace of a configuration, the same for the same configuration.

    Every request has a session; a conversation keeps its priority and its shared prompt.
    """
    streams = [np.random.Generator(np.random.PCG64(s)) for s in _seeds(config.seed)]
    arrival_s = _arrival_times(config, streams[0])
    num_rows = arrival_s.size
    rng = streams[1]
    openings = _lognormal(rng, num_rows, config.input_mean_tokens, config.input_log_std)
    messages = _lognormal(rng, num_rows, config.message_mean_tokens, config.input_log_std)
    outputs = _lognormal(rng, num_rows, config.output_mean_tokens, config.output_log_std)
    output_tokens = np.minimum(outputs, config.max_output_tokens)
    rng = streams[2]
    shared_prompt, has_shared = _shared_prompts(config, num_rows, rng)
    think_s = config.min_think_s + rng.exponential(config.mean_think_s, num_rows)
    openings += np.where(has_shared, config.shared_prompt_tokens, 0)
    input_tokens, roots = _converse(
        arrival_s,
        rng.random(num_rows) < config.follow_up_frac,
        think_s,
        np.minimum(openings, config.max_input_tokens),
        messages,
        output_tokens,
        config.max_input_tokens,
    )
    priority = np.where(rng.random(num_rows) < config.urgent_frac, 0, 1)[roots]
    prefix = _prefix(config, input_tokens, roots, shared_prompt, has_shared)
    is_urgent = priority == 0
    return RequestTrace.from_columns(
        arrival_s=arrival_s,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        block_tokens=config.block_tokens,
        source=TraceSource(name=f"synthetic, seed {config.seed}", licence="CC0-1.0"),
        model=config.model,
        tenant=config.tenant,
        priority=priority,
        session=np.unique(roots, return_inverse=True)[1].astype(np.int64),
        prefix=prefix,
        ttft_slo_s=np.where(is_urgent, config.urgent_ttft_slo_s, config.normal_ttft_slo_s),
        tpot_slo_s=np.where(is_urgent, config.urgent_tpot_slo_s, config.normal_tpot_slo_s),
    )


def _seeds(seed: int) -> list[np.random.SeedSequence]:
    """Seeds of arrivals, lengths and structure: a change to one leaves the others."""
    return np.random.SeedSequence(seed).spawn(3)


def _arrival_times(config: SyntheticConfig, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    process = ArrivalProcess(
        rate_rps=config.rate_rps,
        log_rate_std=config.burst_log_rate_std,
        log_rate_memory_s=config.burst_memory_s,
        count_cv=config.burst_count_cv,
        ramp_amplitude_frac=config.ramp_amplitude_frac,
        ramp_period_s=config.ramp_period_s,
    )
    if config.num_requests is not None:
        return first_arrivals(process, config.num_requests, rng)
    return arrivals_within(process, config.span_s or 0.0, rng)


def _lognormal(
    rng: np.random.Generator, size: int, mean: float, log_std: float
) -> npt.NDArray[np.int32]:
    """Token counts of a log-normal with this mean, at least 1."""
    draws = np.exp(np.log(mean) - 0.5 * log_std**2 + log_std * rng.standard_normal(size))
    tokens: npt.NDArray[np.int32] = np.clip(np.rint(draws), 1, 2**30).astype(np.int32)
    return tokens


def _shared_prompts(
    config: SyntheticConfig, num_rows: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """For a conversation opened by each row: which shared prompt, and whether it has one."""
    weights = 1.0 / np.arange(1, config.num_shared_prompts + 1)
    bounds = np.cumsum(weights / weights.sum())
    prompt = np.searchsorted(bounds[:-1], rng.random(num_rows), side="right")
    return prompt, rng.random(num_rows) < config.shared_prompt_frac


def _prefix(
    config: SyntheticConfig,
    input_tokens: npt.NDArray[np.int32],
    roots: npt.NDArray[np.int64],
    shared_prompt: npt.NDArray[np.int64],
    has_shared: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Offsets and hash chains of the full blocks of every prompt."""
    offsets = np.concatenate([[0], np.cumsum(input_tokens // config.block_tokens)])
    salt = np.uint64(config.seed)
    # Conversations are numbered from 2**32, shared prompts from 0: no seed stands for both.
    own_seeds = mix_all((roots + 2**32).astype(np.uint64), salt)
    shared_seeds = mix_all(shared_prompt[roots].astype(np.uint64), salt)
    num_shared = config.shared_prompt_tokens // config.block_tokens
    num_shared_blocks = np.where(has_shared[roots], num_shared, 0).astype(np.int32)
    return offsets, chain_hashes(offsets, shared_seeds, num_shared_blocks, own_seeds)


@njit(cache=True, nogil=True)
def _converse(
    arrival_s: npt.NDArray[np.float64],
    wants_follow_up: npt.NDArray[np.bool_],
    think_s: npt.NDArray[np.float64],
    opening_tokens: npt.NDArray[np.int32],
    message_tokens: npt.NDArray[np.int32],
    output_tokens: npt.NDArray[np.int32],
    max_input_tokens: int,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Prompt lengths and, for each request, the request that opened its conversation.

    A follow-up continues the latest request that arrived at least its think time ago and has
    no next turn yet. Shapes: all [N].
    """
    input_tokens = opening_tokens.copy()
    roots = np.arange(arrival_s.size)
    has_next_turn = np.zeros(arrival_s.size, np.bool_)
    for i in range(arrival_s.size):
        if not wants_follow_up[i]:
            continue
        latest = np.searchsorted(arrival_s, arrival_s[i] - think_s[i], side="right") - 1
        for earlier in range(latest, max(latest - _MAX_PROBES, -1), -1):
            if has_next_turn[earlier]:
                continue
            tokens = input_tokens[earlier] + output_tokens[earlier] + message_tokens[i]
            if tokens <= max_input_tokens:
                input_tokens[i] = tokens
                roots[i] = roots[earlier]
                has_next_turn[earlier] = True
                break
    return input_tokens, roots
