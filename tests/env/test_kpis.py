"""Indicators of five requests, computed by hand."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from trimtab.env.kpis import Kpis, compute_kpis, credit_by_window, is_met, tpot_s, ttft_s
from trimtab.env.simulator.layout import FAILED, FINISHED, REPLICA_DTYPE, REQUEST_DTYPE, SHED

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
NAN = float("nan")
# status, arrival, first token, finish, output tokens, TTFT limit, TPOT limit, weight
ROWS = [
    (FINISHED, 0.0, 0.4, 1.4, 11, 0.5, 0.10, 2.0),  # TTFT 0.4, TPOT 0.1: both at or under
    (FINISHED, 1.0, 1.6, 2.6, 11, 0.5, 0.20, 2.0),  # TTFT 0.6: late
    (FINISHED, 2.0, 2.3, 2.3, 1, 0.5, 0.01, 1.0),  # one token: TPOT 0
    (SHED, 3.0, NAN, 3.0, 50, 0.5, 0.10, 2.0),
    (FAILED, 4.0, 4.2, 6.0, 50, 0.5, 0.10, 1.0),  # got a token, was lost
]


def make_requests() -> np.ndarray:
    requests = np.zeros(len(ROWS), REQUEST_DTYPE)
    requests["worth_frac"] = 1.0
    names = ("status", "arrival_s", "first_token_s", "finish_s", "output_tokens")
    for row, values in zip(requests, ROWS, strict=True):
        for name, value in zip(names, values, strict=False):
            row[name] = value
        row["query"]["ttft_slo_s"], row["query"]["tpot_slo_s"], row["weight"] = values[5:]
    return requests


def make_replicas() -> np.ndarray:
    replicas = np.zeros(2, REPLICA_DTYPE)
    replicas["energy_j"] = [1.8e6, 5.4e6]
    replicas["idle_j"] = [0.36e6, 0.72e6]
    replicas["prefill_j"] = [0.72e6, 3.6e6]
    # The first is billed for half a kWh less than it used, at 0.1 USD and 400 g a kWh since.
    replicas["billed_j"] = [0.0, 5.4e6]
    replicas["cost_usd"] = [0.02, 0.3]
    replicas["carbon_g"] = [50.0, 750.0]
    replicas["usd_per_j"] = 0.1 / 3.6e6
    replicas["g_per_j"] = 400.0 / 3.6e6
    replicas["hit_tokens"] = [100, 50]
    replicas["prompt_tokens"] = [400, 200]
    replicas["num_preemptions"] = [3, 4]
    replicas["generated_tokens"] = [15, 8]
    return replicas


def test_latencies_are_differences_of_moments():
    requests = make_requests()
    np.testing.assert_allclose(ttft_s(requests), [0.4, 0.6, 0.3, NAN, 0.2])
    np.testing.assert_allclose(tpot_s(requests), [0.1, 0.1, 0.0, NAN, NAN])
    assert is_met(requests).tolist() == [True, False, True, False, False]


def test_indicators_of_five_requests():
    kpis = compute_kpis(make_requests(), make_replicas())
    expected = {
        "num_requests": 5,
        "goodput_frac": 3.0 / 8.0,
        "goodput_rps": 2 / 4.0,
        "slo_violation_frac": 3 / 5,
        "shed_frac": 1 / 5,
        "failed_frac": 1 / 5,
        "ttft_p50_s": 0.35,  # of 0.2, 0.3, 0.4, 0.6
        "ttft_p99_s": 0.4 + 0.2 * 0.97,
        "tpot_p50_s": 0.1,
        "tpot_p99_s": 0.1,
        # Of the finished: 1.4, 1.6 and 0.3. A refusal at once is no fast answer.
        "e2e_p99_s": 1.4 + 0.2 * 0.98,
        "output_tokens_per_kwh": 23 / 2.0,
        "prefix_hit_frac": 0.25,
        "num_preemptions": 7,
        "energy_kwh": 2.0,
        "idle_kwh": 0.3,
        "prefill_kwh": 1.2,
        "decode_kwh": 0.5,
        "cost_usd": 0.02 + 0.3 + 0.05,
        "carbon_kg": 0.05 + 0.75 + 0.2,
    }
    assert kpis.as_dict() == pytest.approx(expected)


def test_credit_goes_to_the_window_of_arrival():
    credit = credit_by_window(make_requests(), 2.0, 2)
    assert credit.tolist() == [2.0, 1.0]
    assert credit_by_window(make_requests(), 1.0, 2).tolist() == [2.0, 0.0]
    assert credit_by_window(make_requests(), 1.0, 6).tolist() == [2.0, 0.0, 1.0, 0.0, 0.0, 0.0]


def test_no_request_is_an_error():
    with pytest.raises(ValueError, match="without requests; got 0 requests"):
        compute_kpis(make_requests()[:0], make_replicas())


def test_run_in_which_nothing_got_a_token():
    requests = make_requests()[3:4]
    kpis = compute_kpis(requests, np.zeros(1, REPLICA_DTYPE))
    assert np.isnan([kpis.ttft_p99_s, kpis.tpot_p99_s, kpis.e2e_p99_s]).all()
    assert (kpis.goodput_frac, kpis.shed_frac, kpis.output_tokens_per_kwh) == (0.0, 1.0, 0.0)


@pytest.mark.skipif(not PAGE.exists(), reason="the installed package has no docs")
def test_the_page_defines_every_indicator():
    text = PAGE.read_text(encoding="utf-8")
    names = {field.name for field in fields(Kpis)} - {"num_requests"}
    assert not [name for name in sorted(names) if f"`{name}`" not in text]
