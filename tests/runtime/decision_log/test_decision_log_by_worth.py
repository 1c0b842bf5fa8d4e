"""The decision log where requests go by what a placement is worth."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from live_requests import make_dispatcher, make_facts, run_request

from trimtab.agents.heuristics import MARGINAL_VALUE
from trimtab.env.cluster_file import load_cluster
from trimtab.env.lookahead.settings import NETWORK_CANDIDATES
from trimtab.env.simulator.setup import replica_coefficients
from trimtab.runtime.decision_log.confidence import confidence
from trimtab.runtime.decision_log.decision_log import DecisionLog
from trimtab.runtime.decision_log.explanation import explain_request
from trimtab.runtime.shadow.redecisions import ShadowError, read_candidates, redecide
from trimtab.runtime.tracing.span_attributes import decision_attributes

DEMO = load_cluster("demo-16")
CLUSTER = replace(DEMO, replicas=DEMO.replicas[:10])
NAMES = [replica.name for replica in CLUSTER.replicas]


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    dispatcher = make_dispatcher(CLUSTER, knobs=MARGINAL_VALUE.knobs, keep_every=1)
    log = DecisionLog(tmp_path, NAMES)
    dispatcher.listeners.append(log)
    run_request(dispatcher, make_facts(0, 1.0))
    for number in range(1, 9):
        # Long prompts wait everywhere but where the last ones go.
        dispatcher.dispatch(make_facts(number, 2.0, input_tokens=6000), 2.0)
    run_request(dispatcher, make_facts(9, 2.0, ttft_slo_s=0.4))
    run_request(dispatcher, make_facts(10, 3.0, ttft_slo_s=1e-4, input_tokens=4000))
    records = dispatcher.decisions.take()
    assert all(0.5 <= confidence(record) <= 1.0 for record in records)
    log.keep(records)
    log.flush()
    attributes = decision_attributes(records[-2], NAMES)
    assert attributes["trimtab.decision.top_replicas"][0] == NAMES[records[-2].choice]  # type: ignore[index]
    return tmp_path


def test_candidates_say_what_they_are_worth(logged: Path) -> None:
    (part,) = (logged / "candidates").iterdir()
    rows = [row for row in pq.read_table(part).to_pylist() if row["request_id"] == "req-9"]
    looked_at = [row for row in rows if np.isfinite(row["cost"])]
    assert (len(rows), len(looked_at)) == (10, NETWORK_CANDIDATES)
    assert [row["worth_price"] for row in rows if row not in looked_at] == [None, None]
    for row in looked_at:
        parts = [value for name, value in row.items() if name.startswith("worth_")]
        assert sum(parts) == pytest.approx(row["cost"])
    (chosen,) = [row for row in rows if row["is_chosen"]]
    assert chosen["cost"] == min(row["cost"] for row in looked_at)
    assert chosen["worth_own_goodput"] < 0.0


def test_the_chain_is_told_in_words(logged: Path) -> None:
    text = "\n".join(explain_request(logged, "req-9").sentences())
    assert "was chosen, worth +" in text
    assert " at a price of 0.0" in text
    assert "was not looked at: it could not hold the request, or others cost less." in text
    assert "lost by" in text
    assert "its own chance there" in text


def test_a_refusal_says_that_nothing_was_worth_its_price(logged: Path) -> None:
    text = "\n".join(explain_request(logged, "req-10").sentences())
    assert "It was refused: it is worth its price at no replica that was looked at." in text
    assert "would have been worth +0.000 at a price of" in text


def test_decisions_are_not_made_again_by_worth(logged: Path) -> None:
    with pytest.raises(ShadowError, match=r"by worth \(value_weight 1\).*universal-scorer"):
        redecide(
            read_candidates(logged), replica_coefficients(CLUSTER), lambda _: MARGINAL_VALUE.knobs
        )
