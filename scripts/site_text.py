"""One site as people read it.

Does not know: how sites are drawn.
"""

from ..env.sites import Site, TraceLibrary, Traffic, episode_regimes, site_capacity
from ..env.sites.regime import RegimeSpan

_LABEL_WIDTH = 14


def site_text(site: Site, traces: TraceLibrary | None, *, has_rate: bool, episode: int) -> str:
    """Return a site's fleet, traffic, limits, load, trouble and regimes, one a line.

    With `has_rate`, the capacity is found or remembered, and the load is shown as a rate too.
    """
    lines = {
        "site": f"{site.name}, {'changing' if site.is_changing else 'steady'}",
        "fleet": f"{site.num_replicas} replicas of {site.model}: {_pools(site)}",
        "kv": f"{100 * site.kv_frac:g} % of the pages; prompts up to {site.max_prompt_tokens:,}",
        "traffic": _traffic(site.traffic),
        "urgent": f"{_limits(site, 0)}; {100 * site.urgent_frac:g} % of sessions, weight 2",
        "others": f"{_limits(site, 1)}; weight 1",
        "load": _load(site, traces, has_rate=has_rate),
        "scrape": f"every {1e3 * site.scrape_interval_s:.0f} ms",
        "slow-downs": {0.0: "none", 0.5: "half strength", 1.0: "full strength"}.get(
            site.slowdown_strength, f"{site.slowdown_strength:g} of full strength"
        ),
        "beliefs": _beliefs(site),
    }
    text = [f"{label:{_LABEL_WIDTH}}{line}" for label, line in lines.items()]
    if site.is_changing:
        text.append(f"{'regimes':{_LABEL_WIDTH}}of episode {episode}")
        text += [_regime(span) for span in episode_regimes(site, episode)]
    return "\n".join(text)


def _pools(site: Site) -> str:
    return ", ".join(
        f"{pool.num_replicas} on {pool.gpus_per_replica} x {pool.gpu}" for pool in site.pools
    )


def _traffic(traffic: Traffic) -> str:
    parts = [f"{traffic.shape}, {traffic.recording}"]
    if traffic.length_eighths < 8:
        parts.append(f"lengths x {traffic.length_eighths / 8:g}")
    if traffic.num_overlays:
        parts.append(f"{traffic.num_overlays} laid over one another")
    return ", ".join(parts)


def _limits(site: Site, priority: int) -> str:
    ttft_ms, tpot_ms = 1e3 * site.ttft_slo_s[priority], 1e3 * site.tpot_slo_s[priority]
    return f"TTFT {ttft_ms:.0f} ms, TPOT {tpot_ms:.0f} ms"


def _load(site: Site, traces: TraceLibrary | None, *, has_rate: bool) -> str:
    text = f"{site.load_frac:.2f} of capacity"
    if not has_rate:
        return text
    found = site_capacity(site, site.traffic, traces)
    rate_rps = site.load_frac * found.rate_rps
    return f"{text}: {rate_rps:.1f} of {found.rate_rps:.1f} requests/s"


def _beliefs(site: Site) -> str:
    if not site.beliefs:
        return "right"
    return ", ".join(
        f"{one.gpu} compute x {one.compute_factor:.2f}, memory x {one.memory_factor:.2f}"
        for one in site.beliefs
    )


def _regime(span: RegimeSpan) -> str:
    times = f"{span.start_s:.0f}-{span.end_s:.0f} s"
    return f"{'':{_LABEL_WIDTH}}{times:12}{span.kind:14}load {span.load_frac:.2f}"
