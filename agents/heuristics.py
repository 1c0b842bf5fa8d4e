"""The usual schedulers, each as one constant setting of the knobs.

Weights and thresholds are the defaults that the named routers document; where a router offers
shedding it is off by default, so none of these sheds.

Does not know: the simulator, or how knobs are tuned.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..env.knobs import ANALYTIC_SCORER_KNOBS, Knobs
from .universal import universal_scorer, universal_worth


@dataclass(frozen=True, slots=True, kw_only=True)
class Heuristic:
    """A named scheduler."""

    name: str
    knobs: Knobs
    source: str
    """Where its rule and numbers come from."""
    is_imported: bool = True
    """Whether it is somebody else's rule, rather than the analytic scorer of this project."""


def _heuristic(name: str, source: str, **knobs: float) -> Heuristic:
    return Heuristic(name=name, knobs=Knobs.of(**knobs), source=source)


ANALYTIC_SCORER = Heuristic(
    name="analytic-scorer",
    knobs=ANALYTIC_SCORER_KNOBS,
    source="this project: untuned prior with predictive shedding",
    is_imported=False,
)

UNIVERSAL_SCORER = Heuristic(
    name="universal-scorer",
    knobs=universal_scorer(),
    source="this project: the analytic scorer, tuned over training sites",
    is_imported=False,
)
MARGINAL_VALUE = Heuristic(
    name="marginal-value",
    knobs=universal_worth(),
    source="this project: what a placement is worth in expected goodput, tuned over training sites",
    is_imported=False,
)

_ALL = (
    _heuristic("random", "uniform choice", random_weight=1.0),
    _heuristic("round-robin", "next in turn", round_robin_weight=1.0),
    _heuristic("least-requests", "Envoy LEAST_REQUEST over all hosts",
               outstanding_requests_weight=1.0),
    _heuristic("least-tokens", "outstanding prompt and expected output tokens",
               outstanding_tokens_weight=1.0),
    _heuristic("power-of-two", "vllm-router power_of_two", outstanding_requests_weight=1.0,
               num_choices=2.0),
    _heuristic("session-hash", "rendezvous hash, vllm-router consistent_hash",
               session_hash_weight=1.0),
    _heuristic("sglang-cache-aware", "SGLang router cache_aware: threshold 0.5, balance 64 / 1.5",
               hit_threshold_frac=0.5, balance_abs_requests=64.0, balance_ratio=1.5),
    _heuristic("llm-d-weighted", "llm-d EPP default: queue 2, KV 2, prefix 3, max score",
               waiting_share_weight=2.0, kv_usage_weight=2.0, prefix_miss_weight=3.0),
    _heuristic("dynamo-logit", "Dynamo KV router: prefill blocks + decode blocks, temperature 0",
               pending_tokens_weight=1.0 / 16.0, outstanding_tokens_weight=1.0 / 16.0),
    _heuristic("predicted-ttft", "lowest predicted TTFT: roofline, corrected by what is observed",
               predicted_ttft_weight=1.0, elapsed=1.0, iteration=1.0, ttft_drift=1.0),
    ANALYTIC_SCORER,
    UNIVERSAL_SCORER,
    MARGINAL_VALUE,
)  # fmt: skip

HEURISTICS: Mapping[str, Heuristic] = MappingProxyType({h.name: h for h in _ALL})


def heuristic(name: str) -> Heuristic:
    """Return a heuristic by name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in HEURISTICS:
        msg = f"unknown policy '{name}'; known: {', '.join(HEURISTICS)}"
        raise ValueError(msg)
    return HEURISTICS[name]
