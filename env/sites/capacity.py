"""What a site can carry: the unit of its loads.

Capacity is the rate at which the untuned scorer, with right coefficients, fresh state and no
trouble, still has 90 % of the goodput that it has at light load. It is found by bisection on short
workloads of the site's own part of its traffic, and remembered on disk.

Does not know: regimes, or trouble.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ...traces.atomic import replace_file
from ..knobs import ANALYTIC_SCORER_KNOBS
from ..simulated_fleet import SimulatedFleet
from ..simulator.memory import HANDLE_DTYPE
from ..simulator.setup import FleetConfig
from ..simulator.workload import Workload, compile_workload
from .goodput import goodput
from .library import TraceLibrary
from .requests import draw_requests, with_classes
from .site import Site
from .split import site_seed
from .traffic import SYNTHETIC, Traffic

# Share of the light-load goodput that is kept at capacity.
_KEPT_FRAC = 0.9
# Light load and the bounds of the search, over the rate that prefill alone would allow; reused
# prefixes let a fleet do more than that.
_LIGHT_FRAC, _LOW_FRAC, _HIGH_FRAC = 0.05, 0.05, 2.5
_BISECTIONS = 7
# Workloads that a goodput is the mean of.
_NUM_WORKLOADS = 2
# A workload of the search: its span, s, made shorter for many requests and longer for few.
_SPAN_S, _LEAST_SPAN_S, _MOST_REQUESTS, _LEAST_REQUESTS = 90.0, 45.0, 6000, 200
# Fresh state: scrapes that never fail, s.
_FRESH_SCRAPE_S = 0.02
# Requests whose lengths say what a replica can prefill.
_NUM_LENGTHS = 500
# Counts changes of the search, so that what is remembered of an earlier one is not used.
_VERSION = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a site can carry of one kind of traffic."""

    rate_rps: float
    """Load 1."""
    light_goodput_frac: float
    """Goodput at light load: what its limits allow at best."""


def cache_directory() -> Path:
    """Return where capacities are remembered: in the user's cache directory."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "trimtab" / "sites"


@lru_cache(maxsize=4096)
def site_capacity(site: Site, traffic: Traffic, traces: TraceLibrary | None) -> Capacity:
    """Return what a site can carry of a kind of traffic, found once and then remembered."""
    file = cache_directory() / f"{_key(site, traffic, traces)}.json"
    try:
        return Capacity(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        found = search_capacity(site, traffic, traces)
    try:
        replace_file(file, json.dumps(asdict(found)).encode())
    except OSError:
        # A cache that cannot be written costs time only.
        return found
    return found


def _key(site: Site, traffic: Traffic, traces: TraceLibrary | None) -> str:
    """Return a hash of all that the capacity depends on, the simulator's source included."""
    recording = ""
    if traces is not None and traffic.recording != SYNTHETIC:
        recording = traces.print_of(traffic.recording)
    content = (
        _VERSION,
        HANDLE_DTYPE.names,
        (site.split, site.number, site.model, site.pools, site.kv_frac, site.urgent_frac),
        (site.ttft_slo_s, site.tpot_slo_s, traffic, recording),
    )
    return hashlib.sha256(repr(content).encode()).hexdigest()[:32]


def search_capacity(site: Site, traffic: Traffic, traces: TraceLibrary | None) -> Capacity:
    """Find what a site can carry, without looking at what is remembered."""
    bound_rps = _prefill_bound_rps(site, traffic, traces)
    light = _goodput(site, traffic, traces, _LIGHT_FRAC * bound_rps)
    low, high = np.log(_LOW_FRAC * bound_rps), np.log(_HIGH_FRAC * bound_rps)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if _goodput(site, traffic, traces, float(np.exp(middle))) >= _KEPT_FRAC * light:
            low = middle
        else:
            high = middle
    return Capacity(rate_rps=float(np.exp(low)), light_goodput_frac=light)


def _prefill_bound_rps(site: Site, traffic: Traffic, traces: TraceLibrary | None) -> float:
    """Rate that prefill alone would allow, without reuse."""
    trace = draw_requests(site, traffic, traces, rate_rps=_NUM_LENGTHS / 60.0, span_s=60.0, seed=0)
    workload = compile_workload(trace, name="lengths", levels=site.levels)
    fleet = SimulatedFleet(site.cluster, workload, _FRESH)
    fleet.reset(seed=0)
    token_s = fleet.arrays.views["prefill_token_s"]
    return float((1.0 / token_s).sum() / trace.input_tokens.mean())


_FRESH = FleetConfig(scrape_interval_s=_FRESH_SCRAPE_S, scrape_drop_frac=0.0)


def _workload(
    site: Site, traffic: Traffic, traces: TraceLibrary | None, rate_rps: float, number: int
) -> Workload:
    span_s = max(min(_SPAN_S, _MOST_REQUESTS / rate_rps), _LEAST_SPAN_S, _LEAST_REQUESTS / rate_rps)
    seed = site_seed(site.split, site.number, 2, number)
    trace = draw_requests(site, traffic, traces, rate_rps=rate_rps, span_s=span_s, seed=seed)
    limits = (site.ttft_slo_s, site.tpot_slo_s)
    classed = with_classes(trace, urgent_frac=site.urgent_frac, limits=limits, seed=seed)
    return compile_workload(classed, name=f"{site.name}/capacity", levels=site.levels)


def _goodput(site: Site, traffic: Traffic, traces: TraceLibrary | None, rate_rps: float) -> float:
    total = 0.0
    for number in range(_NUM_WORKLOADS):
        workload = _workload(site, traffic, traces, rate_rps, number)
        fleet = SimulatedFleet(site.cluster, workload, _FRESH)
        fleet.reset(seed=0, knobs=ANALYTIC_SCORER_KNOBS)
        fleet.drain()
        total += goodput(fleet.requests)
    return total / _NUM_WORKLOADS
