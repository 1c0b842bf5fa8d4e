"""Violations of a span by hand."""

import numpy as np
import pytest

from trimtab.env.simulator.layout import FAILED, FINISHED, NONE, REQUEST_DTYPE, SHED
from trimtab.graph_encoder.violations import violations_within

NEVER = np.nan


def make_requests(*rows: dict[str, float]) -> np.ndarray:
    """Return requests that arrived at 1 s, finished on replica 0 and may wait 1 s, but for."""
    requests = np.zeros(len(rows), dtype=REQUEST_DTYPE)
    for request, row in zip(requests, rows, strict=True):
        request["arrival_s"] = 1.0
        request["query"]["ttft_slo_s"] = 1.0
        request["query"]["priority"] = row.get("tenant", 0)
        request["replica"] = row.get("replica", 0)
        request["status"] = row.get("status", FINISHED)
        request["first_token_s"] = row.get("first_token_s", NEVER)
        request["finish_s"] = row.get("finish_s", NEVER)
    return requests


def test_shares_by_hand() -> None:
    requests = make_requests(
        {"first_token_s": 1.5, "finish_s": 9.0},  # before the span
        {"first_token_s": 2.0, "finish_s": 9.0},  # at its begin: not in it
        {"first_token_s": 3.0, "finish_s": 9.0},  # late
        {"first_token_s": 4.0, "finish_s": 9.0, "replica": 1},  # late, at its end: in it
        {"first_token_s": 4.5, "finish_s": 9.0},  # after
        {"status": SHED, "finish_s": 2.5, "replica": NONE, "tenant": 1},
        {"status": FAILED, "finish_s": 3.5, "first_token_s": 1.2, "tenant": 1},
        {"status": FAILED, "finish_s": 1.5, "first_token_s": NEVER},  # before
    )
    requests[0]["arrival_s"] = requests[2]["arrival_s"] = 1.0
    found = violations_within(requests, 2.0, 4.0, num_replicas=3)
    assert found.fleet_frac == 1.0
    assert found.tenant_frac.tolist() == [1.0, 1.0]
    assert found.replica_frac[:2].tolist() == [1.0, 1.0]
    assert np.isnan(found.replica_frac[2])


def test_tokens_in_time_are_no_violations() -> None:
    requests = make_requests(
        {"first_token_s": 1.9}, {"first_token_s": 2.0}, {"first_token_s": 2.1, "tenant": 1}
    )
    found = violations_within(requests, 1.0, 3.0, num_replicas=1)
    assert found.fleet_frac == pytest.approx(1 / 3)
    assert found.tenant_frac.tolist() == [0.0, 1.0]


def test_a_span_without_requests_is_unknown() -> None:
    found = violations_within(make_requests({}), 2.0, 4.0, num_replicas=1)
    assert np.isnan(found.fleet_frac)
    assert np.isnan(found.tenant_frac).all()
