"""Key performance indicators of a finished run, each defined on a request's named moments.

TTFT is first token minus arrival; TPOT is (finish minus first token) over the tokens after the
first; a request is met if it finished within both limits. Refused and failed requests are misses.

Does not know: which policy made the run.
"""

from dataclasses import asdict, dataclass

import numpy as np

from .energy_prices import JOULES_PER_KWH
from .simulator.layout import FAILED, FINISHED, SHED


@dataclass(frozen=True, slots=True, kw_only=True)
class Kpis:
    """Indicators of one run. Shares are in [0, 1]; TTFT is of requests that got a token, TPOT and
    end-to-end latency of those that finished.
    """

    num_requests: int
    goodput_frac: float
    """Weighted share of requests that finished within both limits; one whose answer was cut counts
    by the share of its tokens that it got."""
    goodput_rps: float
    """Requests per second that did, unweighted."""
    slo_violation_frac: float
    """Share of requests that did not, refused and failed ones included, unweighted."""
    shed_frac: float
    failed_frac: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    e2e_p99_s: float
    output_tokens_per_kwh: float
    """Output tokens over energy, hosts included, up to the last arrival (not the drain)."""
    prefix_hit_frac: float
    """Prompt tokens found in a prefix cache over prompt tokens admitted."""
    num_preemptions: float
    """NaN where engines do not tell, as do energy and prefix hits."""
    energy_kwh: float
    idle_kwh: float = 0.0
    """Energy of replicas on which nothing ran."""
    prefill_kwh: float = 0.0
    """Energy of iterations that carried prefill, decodes beside it included."""
    decode_kwh: float = 0.0
    """Energy of all other iterations."""
    cost_usd: float = 0.0
    """Energy times the price of its moment."""
    carbon_kg: float = 0.0
    """Energy times the carbon intensity of its moment."""

    def as_dict(self) -> dict[str, float]:
        """Return all indicators by name."""
        return asdict(self)


def ttft_s(requests: np.ndarray) -> np.ndarray:
    """Return time to first token, NaN where there was none; shape [N]."""
    return np.asarray(requests["first_token_s"] - requests["arrival_s"])


def tpot_s(requests: np.ndarray) -> np.ndarray:
    """Return time per output token after the first, NaN if unfinished, 0 for one token; [N]."""
    later = requests["output_tokens"] - 1
    span_s = np.where(
        requests["status"] == FINISHED, requests["finish_s"] - requests["first_token_s"], np.nan
    )
    return np.where(later > 0, span_s / np.maximum(later, 1), 0.0 * span_s)


def is_met(requests: np.ndarray) -> np.ndarray:
    """Return whether each request finished within both its limits; bool [N]."""
    query = requests["query"]
    with np.errstate(invalid="ignore"):
        return np.asarray(
            (requests["status"] == FINISHED)
            & (ttft_s(requests) <= query["ttft_slo_s"])
            & (tpot_s(requests) <= query["tpot_slo_s"])
        )


def credit_by_window(requests: np.ndarray, window_s: float, num_windows: int) -> np.ndarray:
    """Return the weight of met requests by the window in which they arrived; [num_windows]."""
    window = (requests["arrival_s"] / window_s).astype(np.int64)
    worth = requests["weight"] * requests["worth_frac"]
    credit = np.where(is_met(requests), worth, 0.0)
    is_inside = window < num_windows
    return np.bincount(window[is_inside], credit[is_inside], minlength=num_windows)


def _percentile(values: np.ndarray, percent: float) -> float:
    values = values[np.isfinite(values)]
    return float(np.percentile(values, percent)) if values.size else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Production:
    """Output tokens made, energy used and what it cost, up to some moment."""

    output_tokens: float
    energy_j: float
    idle_j: float = 0.0
    prefill_j: float = 0.0
    cost_usd: float = 0.0
    carbon_g: float = 0.0


def production(replicas: np.ndarray) -> Production:
    """Return what the replicas have made and used so far."""
    # What was used since the last change of a tariff is not billed yet.
    open_j = replicas["energy_j"] - replicas["billed_j"]
    return Production(
        output_tokens=float(replicas["generated_tokens"].sum()),
        energy_j=float(replicas["energy_j"].sum()),
        idle_j=float(replicas["idle_j"].sum()),
        prefill_j=float(replicas["prefill_j"].sum()),
        cost_usd=float((replicas["cost_usd"] + open_j * replicas["usd_per_j"]).sum()),
        carbon_g=float((replicas["carbon_g"] + open_j * replicas["g_per_j"]).sum()),
    )


def compute_kpis(
    requests: np.ndarray, replicas: np.ndarray, made: Production | None = None
) -> Kpis:
    """Return the indicators of a run from its request and replica tables.

    `made` is the production up to the last arrival; by default, all of it.

    Raises:
        ValueError: there is no request.
    """
    if requests.size == 0:
        msg = "cannot compute indicators of a run without requests; got 0 requests"
        raise ValueError(msg)
    met, weight, status = is_met(requests), requests["weight"], requests["status"]
    ttft, tpot = ttft_s(requests), tpot_s(requests)
    made = made or production(replicas)
    energy_kwh = made.energy_j / JOULES_PER_KWH
    has_later = requests["output_tokens"] > 1
    e2e = (requests["finish_s"] - requests["arrival_s"])[status == FINISHED]
    return Kpis(
        num_requests=requests.size,
        goodput_frac=float((weight * requests["worth_frac"])[met].sum() / weight.sum()),
        goodput_rps=float(met.sum() / max(requests["arrival_s"][-1], 1e-9)),
        slo_violation_frac=float(1.0 - met.mean()),
        shed_frac=float((status == SHED).mean()),
        failed_frac=float((status == FAILED).mean()),
        ttft_p50_s=_percentile(ttft, 50),
        ttft_p99_s=_percentile(ttft, 99),
        tpot_p50_s=_percentile(tpot[has_later], 50),
        tpot_p99_s=_percentile(tpot[has_later], 99),
        e2e_p99_s=_percentile(e2e, 99),
        output_tokens_per_kwh=made.output_tokens / energy_kwh if energy_kwh > 0 else 0.0,
        prefix_hit_frac=float(
            replicas["hit_tokens"].sum() / max(1, replicas["prompt_tokens"].sum())
        ),
        num_preemptions=int(replicas["num_preemptions"].sum()),
        energy_kwh=energy_kwh,
        idle_kwh=made.idle_j / JOULES_PER_KWH,
        prefill_kwh=made.prefill_j / JOULES_PER_KWH,
        decode_kwh=(made.energy_j - made.idle_j - made.prefill_j) / JOULES_PER_KWH,
        cost_usd=made.cost_usd,
        carbon_kg=made.carbon_g / 1e3,
    )
