"""What the clients of a load saw, request by request, and the figures that sum it up.

TTFT and end-to-end time are counted from the moment that a request was due, so a client that is
held up does not hide it. TPOT is the time after the first token over the tokens after it.

Does not know: how requests are sent.
"""

from dataclasses import dataclass

import numpy as np

RESULT_DTYPE = np.dtype(
    [
        ("due_s", np.float64),  # from the start of the load
        ("first_s", np.float64),  # first byte of the answer's body; NaN for none
        ("end_s", np.float64),  # NaN where it did not end
        ("status", np.int64),  # HTTP; 0 where no answer came
        ("output_tokens", np.int64),
        ("is_whole", np.int64),
        ("ttft_slo_s", np.float64),
        ("tpot_slo_s", np.float64),
        ("weight", np.float64),
        ("replica", np.int64),  # by the order in which they first answered; -1 for none
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFigures:
    """Figures of one load."""

    num_requests: int
    num_failed: int
    """Without a whole answer, refused ones left out."""
    num_shed: int
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    e2e_p99_s: float
    goodput_frac: float
    """Weighted share that met both limits."""


def tpot_s(results: np.ndarray) -> np.ndarray:
    """Return time per output token after the first; 0 for one token, NaN if not whole; [N]."""
    later = np.maximum(results["output_tokens"] - 1, 0)
    span_s = results["end_s"] - results["first_s"]
    per_token_s = np.where(later > 0, span_s / np.maximum(later, 1), 0.0)
    return np.where(results["is_whole"] != 0, per_token_s, np.nan)


def is_met(results: np.ndarray) -> np.ndarray:
    """Return whether each request was answered within both limits; bool [N]."""
    with np.errstate(invalid="ignore"):
        is_early = results["first_s"] - results["due_s"] <= results["ttft_slo_s"]
        is_fast = tpot_s(results) <= results["tpot_slo_s"]
    return np.asarray((results["is_whole"] != 0) & is_early & is_fast)


def _quantile(values: np.ndarray, frac: float) -> float:
    known = values[np.isfinite(values)]
    return float(np.quantile(known, frac)) if known.size else float("nan")


def figures(results: np.ndarray) -> LoadFigures:
    """Return the figures of a load; RESULT_DTYPE [N]."""
    ttft = results["first_s"] - results["due_s"]
    per_token, e2e = tpot_s(results), results["end_s"] - results["due_s"]
    is_shed = results["status"] == 429
    weight = results["weight"].sum()
    return LoadFigures(
        num_requests=results.size,
        num_failed=int(((results["is_whole"] == 0) & ~is_shed).sum()),
        num_shed=int(is_shed.sum()),
        ttft_p50_s=_quantile(ttft, 0.5),
        ttft_p99_s=_quantile(ttft, 0.99),
        tpot_p50_s=_quantile(per_token, 0.5),
        tpot_p99_s=_quantile(per_token, 0.99),
        e2e_p99_s=_quantile(e2e, 0.99),
        goodput_frac=float(results["weight"][is_met(results)].sum() / weight) if weight else 0.0,
    )
