"""The decision log: what is kept of each decision, and how it is told."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from live_requests import make_dispatcher, make_facts, run_request, three_replicas
from typer.testing import CliRunner

from trimtab.env.masks import Mask
from trimtab.env.restrictions import ReplicaLimits
from trimtab.runtime.decision_log.decision_log import Circumstances, DecisionLog, confidence
from trimtab.runtime.decision_log.explanation import UnknownRequestError, explain_request
from trimtab.runtime.dispatcher.live_dispatcher import LiveDispatcher
from trimtab.scripts.cli import app

CLUSTER = three_replicas()
NAMES = [replica.name for replica in CLUSTER.replicas]


def make_log(directory: Path, **options: object) -> DecisionLog:
    ruling = Circumstances(ruler="policy", doubt="", override_size=0.25)
    return DecisionLog(directory, NAMES, circumstances=lambda: ruling, **options)  # type: ignore[arg-type]


def run_logged(directory: Path, *, number: int = 4) -> LiveDispatcher:
    dispatcher, log = make_dispatcher(CLUSTER, keep_every=1), make_log(directory)
    dispatcher.listeners.append(log)
    masks = np.array([0, int(Mask.QUARANTINED), 0], np.uint16)
    none = np.full(3, np.inf)
    dispatcher.set_limits(ReplicaLimits(masks=masks, max_outstanding=none, penalties=np.zeros(3)))
    for each in range(number):
        run_request(dispatcher, make_facts(each, 100.0 + each))
        log.keep(dispatcher.decisions.take())
    log.flush()
    return dispatcher


def test_every_decision_has_its_candidates_and_its_outcome(tmp_path: Path) -> None:
    run_logged(tmp_path)
    requests = pq.read_table(next((tmp_path / "requests").iterdir())).to_pylist()
    candidates = pq.read_table(next((tmp_path / "candidates").iterdir())).to_pylist()
    assert [row["request_id"] for row in requests] == [f"req-{i}" for i in range(4)]
    assert len(candidates) == 12
    for request in requests:
        own = [row for row in candidates if row["request_id"] == request["request_id"]]
        (chosen,) = [row for row in own if row["is_chosen"]]
        assert chosen["replica"] == request["replica"]
        assert chosen["decision"] == request["decision"]
        terms = sum(value for name, value in chosen.items() if name.startswith("term_"))
        assert terms == pytest.approx(chosen["cost"])
        usable = [row["cost"] for row in own if not row["view_mask"]]
        assert chosen["cost"] == min(usable)
        assert request["ttft_s"] == pytest.approx(0.1)
        assert chosen["ruler"] == "policy"
        assert chosen["override_size"] == 0.25


def test_the_chain_is_told_in_words(tmp_path: Path) -> None:
    run_logged(tmp_path)
    text = "\n".join(explain_request(tmp_path, "req-3").sentences())
    assert "Request req-3 of tenant 'shop' (interactive) asked m with 303 prompt tokens" in text
    assert "policy ruled (knob version" in text
    assert "was chosen, cost" in text
    assert f"{NAMES[1]} was not asked: it is quarantined by a breaker." in text
    assert "lost by" in text
    assert "Its first token was predicted in " in text
    assert " (limit 5000 ms)." in text
    assert "It was finished (HTTP 200) after 1100 ms, first token after 100 ms" in text
    result = CliRunner().invoke(app, ["explain", "req-3", "--decisions", str(tmp_path)])
    assert result.exit_code == 0
    assert " ".join(result.output.split()) == " ".join(text.split())
    as_json = CliRunner().invoke(app, ["explain", "req-3", "--decisions", str(tmp_path), "--json"])
    assert '"is_chosen": true' in as_json.output


def test_a_refused_request_says_why(tmp_path: Path) -> None:
    dispatcher, log = make_dispatcher(CLUSTER, keep_every=1), make_log(tmp_path)
    dispatcher.listeners.append(log)
    run_request(dispatcher, make_facts(7, 1.0, ttft_slo_s=1e-4, input_tokens=4000))
    log.keep(dispatcher.decisions.take())
    log.flush()
    text = "\n".join(explain_request(tmp_path, "req-7").sentences())
    assert "It was refused: its first token was predicted too far over its limit." in text
    assert "would have cost" in text
    assert "It was rejected-saturated (HTTP 429)" in text


def test_unknown_requests_are_told_what_there_is(tmp_path: Path) -> None:
    run_logged(tmp_path)
    with pytest.raises(UnknownRequestError, match=r"nothing of request 'x'.*req-1, req-2, req-3"):
        explain_request(tmp_path, "x")
    result = CliRunner().invoke(app, ["explain", "x", "--decisions", str(tmp_path)])
    assert result.exit_code == 2


def test_the_log_is_bounded_on_disk(tmp_path: Path) -> None:
    dispatcher = make_dispatcher(CLUSTER, keep_every=1)
    log = make_log(tmp_path, max_bytes=1 << 20)
    dispatcher.listeners.append(log)
    most = 0
    for part in range(60):
        for each in range(60):
            run_request(dispatcher, make_facts(each, part + 0.01 * each))
        log.keep(dispatcher.decisions.take())
        log.flush()
        most = max(most, sum(path.stat().st_size for path in tmp_path.rglob("*.parquet")))
    assert most <= (1 << 20) + 100_000
    names = sorted(path.name for path in (tmp_path / "candidates").iterdir())
    assert names[0] > "part-00000000.parquet"
    assert names[-1] == "part-00000059.parquet"


def test_no_log_below_a_megabyte() -> None:
    with pytest.raises(ValueError, match="max_bytes must be at least 1048576, got 5"):
        make_log(Path("unused"), max_bytes=5)


def test_confidence_grows_with_the_lead() -> None:
    dispatcher = make_dispatcher(CLUSTER, keep_every=1)
    run_request(dispatcher, make_facts(0, 0.0))
    (even,) = dispatcher.decisions.take()
    for _ in range(30):
        dispatcher.dispatch(make_facts(1, 0.0, input_tokens=3000), 0.0)
    dispatcher.decisions.take()
    views = dispatcher.views
    views["pending_tokens"][1:] = 50_000.0
    dispatcher.dispatch(make_facts(2, 0.0), 0.0)
    (clear,) = dispatcher.decisions.take()
    assert 0.5 <= confidence(even) <= confidence(clear) <= 1.0
    assert confidence(clear) > 0.95
