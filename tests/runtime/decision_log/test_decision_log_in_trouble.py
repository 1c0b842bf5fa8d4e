"""The decision log under a full disk, and what its confidence is made of."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from live_requests import make_dispatcher, make_facts, run_request, three_replicas

from trimtab.runtime.decision_log import decision_log
from trimtab.runtime.decision_log.confidence import PredictionError, confidence
from trimtab.runtime.decision_log.decision_log import DecisionLog
from trimtab.runtime.dispatcher.request import Placement

CLUSTER = three_replicas()
NAMES = [replica.name for replica in CLUSTER.replicas]


def test_a_full_disk_costs_rows_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher, log = make_dispatcher(CLUSTER, keep_every=1), DecisionLog(tmp_path, NAMES)
    dispatcher.listeners.append(log)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(decision_log.pq, "write_table", full)
        run_request(dispatcher, make_facts(0, 0.0))
        log.keep(dispatcher.decisions.take())
        log.flush()
    assert log.num_dropped == 2  # a request's row, and its decision in full
    run_request(dispatcher, make_facts(1, 1.0))
    log.flush()
    (part,) = (tmp_path / "requests").iterdir()
    assert pq.read_table(part)["request_id"].to_pylist() == ["req-1"]


def test_all_parts_have_the_same_columns(tmp_path: Path) -> None:
    dispatcher, log = make_dispatcher(CLUSTER), DecisionLog(tmp_path, NAMES)
    dispatcher.listeners.append(log)
    run_request(dispatcher, make_facts(0, 0.0))
    log.flush()
    for replica in range(3):
        dispatcher.set_available(replica, False, 0.0)
    run_request(dispatcher, make_facts(1, 1.0))  # nobody had it: no replica, no cached tokens
    log.flush()
    rows = pq.read_table(tmp_path / "requests").to_pylist()  # both parts as one table
    assert [row["replica"] is None for row in rows] == [False, True]
    assert [row["cached_tokens"] for row in rows] == [16, None]


def placed(predicted_s: float, ttft_s: float) -> Placement:
    return Placement(
        facts=make_facts(0, 5.0), replica=0, number=1, hit_tokens=0, placed_at_s=5.0,
        predicted_ttft_s=predicted_s, first_token_at_s=5.0 + ttft_s,
    )  # fmt: skip


def test_the_error_of_predictions_is_measured() -> None:
    error = PredictionError()
    assert error.frac == 0.2
    for _ in range(3000):
        error.note(placed(0.2, 0.3))
        error.note(placed(0.2, 0.2))
    assert error.frac == pytest.approx(0.25, abs=0.01)
    error.note(placed(0.2, float("nan")))  # nothing was seen of its first token
    assert error.frac == pytest.approx(0.25, abs=0.01)


def test_confidence_falls_as_predictions_turn_out_wrong() -> None:
    dispatcher = make_dispatcher(CLUSTER, keep_every=1)
    dispatcher.views["pending_tokens"][1:] = 1500.0
    dispatcher.dispatch(make_facts(0, 0.0, ttft_slo_s=0.1), 0.0)
    (record,) = dispatcher.decisions.take()
    sure, unsure, blind = (confidence(record, frac) for frac in (0.01, 0.5, 1e6))
    assert 1.0 >= sure > unsure > blind
    assert blind == pytest.approx(0.5, abs=0.001)
