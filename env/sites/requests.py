"""Requests of a site at a rate: windows of its recording, or synthetic ones of the same kind.

Does not know: capacity, regimes or fleets.
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from ...traces.columns import limit_array, priority_array
from ...traces.schema import RequestTrace
from ...traces.superposition import superpose
from ...traces.synthetic import SyntheticConfig, generate
from .library import BLOCK_TOKENS, TraceLibrary
from .site import LONG_PROMPT_TOKENS, Site
from .traffic import SYNTHETIC, Shape, Traffic

# Most by which the clock of a bursty recording is made faster: beyond it a part of a quarter of an
# hour is shorter than a workload.
_MOST_SPEED_UP = 6.0

# Synthetic traffic by shape. Lengths follow the recordings' means: Azure 2023 conversation
# 1,155 / 211 and code 2,048 / 28 tokens, Mooncake 12,240 / 347, agent sessions' turns of 742 new
# tokens and 217 generated ones.
_SYNTHETIC: dict[Shape, SyntheticConfig] = {
    Shape.CONVERSATION: SyntheticConfig(
        span_s=1.0,
        input_mean_tokens=1155.0,
        output_mean_tokens=211.0,
        follow_up_frac=0.3,
        shared_prompt_frac=0.0,
    ),
    Shape.CODE_BURSTS: SyntheticConfig(
        span_s=1.0,
        input_mean_tokens=2048.0,
        output_mean_tokens=28.0,
        burst_log_rate_std=1.2,
        burst_memory_s=10.0,
        burst_count_cv=2.0,
        follow_up_frac=0.2,
        shared_prompt_frac=0.0,
    ),
    Shape.LONG_PROMPTS: SyntheticConfig(
        span_s=1.0,
        input_mean_tokens=12_240.0,
        output_mean_tokens=347.0,
        message_mean_tokens=1000.0,
        max_input_tokens=65_536,
        shared_prompt_frac=0.2,
    ),
    Shape.AGENT_SESSIONS: SyntheticConfig(
        span_s=1.0,
        input_mean_tokens=48_000.0,
        output_mean_tokens=320.0,
        message_mean_tokens=1500.0,
        max_input_tokens=262_144,
        follow_up_frac=0.9,
        min_think_s=2.0,
        mean_think_s=8.0,
        shared_prompt_frac=0.0,
    ),
    Shape.SYNTHETIC_CHAT: SyntheticConfig(span_s=1.0),
}
_SCALED = ("input_mean_tokens", "message_mean_tokens", "output_mean_tokens")


def draw_requests(
    site: Site,
    traffic: Traffic,
    traces: TraceLibrary | None,
    *,
    rate_rps: float,
    span_s: float,
    seed: int,
) -> RequestTrace:
    """Return requests of a site over [0, span_s), without classes and limits.

    Raises:
        ConfigError: the traffic is of a recording that is not there.
    """
    if traffic.recording == SYNTHETIC:
        return _generated(_synthetic_config(site, traffic), rate_rps, span_s, seed)
    if traces is None:
        msg = f"site {site.name} draws from '{traffic.recording}'; give the traces that have it"
        raise ValueError(msg)
    stretch = traces.stretch(traffic, site.split, site.max_prompt_tokens)
    if traffic.num_overlays:
        stretch = _sped_up(stretch, rate_rps / traffic.num_overlays)
    rate_rps = max(rate_rps, 1.0 / span_s)
    return superpose(stretch, rate_rps=rate_rps, span_s=span_s, seed=seed)


def _generated(config: SyntheticConfig, rate_rps: float, span_s: float, seed: int) -> RequestTrace:
    """As many synthetic requests as the rate asks for, no more and no fewer: a wandering rate does
    not change the load.
    """
    num_requests = max(1, round(rate_rps * span_s))
    sized = replace(config, rate_rps=rate_rps, span_s=None, num_requests=num_requests, seed=seed)
    trace = generate(sized)
    factor = span_s / (float(trace.arrival_s[-1]) * (1.0 + 1.0 / num_requests))
    return trace.with_columns(arrival_s=pa.array(trace.arrival_s * factor))


def _synthetic_config(site: Site, traffic: Traffic) -> SyntheticConfig:
    config, frac = _SYNTHETIC[traffic.shape], traffic.length_eighths / 8.0
    shorter = {name: frac * getattr(config, name) for name in _SCALED}
    longest = min(int(frac * config.max_input_tokens), site.max_prompt_tokens)
    # Drawn lengths are cut at the longest; a mean near it would make most prompts equal.
    shorter["input_mean_tokens"] = min(shorter["input_mean_tokens"], 0.4 * longest)
    return replace(
        config,
        **shorter,
        shared_prompt_tokens=int(frac * config.shared_prompt_tokens),
        max_input_tokens=longest,
        block_tokens=BLOCK_TOKENS,
    )


def _sped_up(trace: RequestTrace, rate_rps: float) -> RequestTrace:
    """The trace at a faster clock, if that brings it nearer to a rate."""
    factor = min(max(rate_rps / trace.mean_rate_rps, 1.0), _MOST_SPEED_UP)
    return trace.with_columns(arrival_s=pa.array(trace.arrival_s / factor))


def with_classes(
    trace: RequestTrace,
    *,
    urgent_frac: float,
    limits: tuple[tuple[float, float], tuple[float, float]],
    seed: int,
) -> RequestTrace:
    """Return requests with a class by session, and the limits of TTFT and TPOT by class."""
    rng = np.random.Generator(np.random.PCG64(seed))
    _, place = np.unique(trace.session_ids, return_inverse=True)
    priority = np.where(rng.random(len(trace))[place] < urgent_frac, 0, 1)
    ttft_slo_s, tpot_slo_s = (np.asarray(each)[priority] for each in limits)
    stretch = np.maximum(1.0, trace.input_tokens / LONG_PROMPT_TOKENS)
    return trace.with_columns(
        priority=priority_array(priority, len(trace)),
        ttft_slo_s=limit_array(ttft_slo_s * stretch, len(trace)),
        tpot_slo_s=limit_array(tpot_slo_s, len(trace)),
    )
