"""Shadow: decisions made again, runs simulated again, and what a router's log says."""

import json
from pathlib import Path

import numpy as np
import pytest
from live_requests import make_dispatcher, make_facts, run_request, three_replicas
from typer.testing import CliRunner

from trimtab.agents.heuristics import heuristic
from trimtab.agents.policy import constant_policy
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, Knobs
from trimtab.env.simulator.setup import replica_coefficients
from trimtab.runtime.decision_log.decision_log import Circumstances, DecisionLog
from trimtab.runtime.launcher.fleet_plan import LocalReplica, plan_fleet
from trimtab.runtime.launcher.tiny_model import TinyModel
from trimtab.runtime.recorder.recorder import Recorder
from trimtab.runtime.shadow.access_log import read_access_log
from trimtab.runtime.shadow.beside import decide_beside
from trimtab.runtime.shadow.redecisions import ShadowError, read_candidates, redecide
from trimtab.runtime.shadow.report import make_report
from trimtab.runtime.shadow.resimulation import (
    SimulatedRun,
    gain_of,
    simulate,
    simulator_error,
    workload_of,
)
from trimtab.scripts.cli import app
from trimtab.traces.store import read_store

CLUSTER = three_replicas()
NAMES = [replica.name for replica in CLUSTER.replicas]
ROUND_ROBIN = heuristic("round-robin").knobs


def log_run(directory: Path, knobs: Knobs, *, number: int = 30) -> None:
    """Serve some requests by some knobs, with a decision log and a recording."""
    dispatcher = make_dispatcher(CLUSTER, knobs=knobs, keep_every=1)
    dispatcher.set_knobs(knobs, "served")
    log = DecisionLog(
        directory / "decisions", NAMES, circumstances=lambda: Circumstances(ruler="scheduler")
    )
    recorder = Recorder(directory / "record", NAMES)
    dispatcher.listeners += [log, recorder]
    for each in range(number):
        run_request(dispatcher, make_facts(each, 10.0 + 0.2 * each))
        log.keep(dispatcher.decisions.take())
    log.flush()
    recorder.flush()


def test_the_same_knobs_agree_with_themselves(tmp_path: Path) -> None:
    log_run(tmp_path, ANALYTIC_SCORER_KNOBS)
    nominal = replica_coefficients(CLUSTER)
    remade = redecide(
        read_candidates(tmp_path / "decisions"), nominal, lambda _: ANALYTIC_SCORER_KNOBS
    )
    assert len(remade) == 30
    assert all(each.is_same for each in remade)
    report = make_report("a", "b", remade)
    assert report.agreement.mean == 1.0
    assert report.expected_gain.mean == 0.0
    assert report.advice == "hold"


def test_other_knobs_differ_and_say_why(tmp_path: Path) -> None:
    log_run(tmp_path, ROUND_ROBIN)
    nominal = replica_coefficients(CLUSTER)
    prefix = Knobs.of(prefix_miss_weight=1.0)
    remade = redecide(read_candidates(tmp_path / "decisions"), nominal, lambda _: prefix)
    different = [each for each in remade if not each.is_same]
    assert len(different) > 5
    assert {each.reason for each in different} <= {"prefix_miss", "a tie"}
    assert all(each.margin >= 0.0 for each in different)
    assert sum(make_report("a", "b", remade).flows.values()) == 30


def test_an_empty_log_says_how_to_fill_it(tmp_path: Path) -> None:
    with pytest.raises(ShadowError, match="--decision-every N"):
        read_candidates(tmp_path)


def test_a_recording_simulates_under_both(tmp_path: Path) -> None:
    log_run(tmp_path, ROUND_ROBIN)
    workload = workload_of(read_store(tmp_path / "record" / "trace"), CLUSTER)
    base = simulate(CLUSTER, workload, constant_policy(heuristic("round-robin")))
    other = simulate(CLUSTER, workload, constant_policy(heuristic("analytic-scorer")))
    assert base.ttft_s.shape == other.ttft_s.shape == (30,)
    assert gain_of(base, base).mean == 0.0
    error = simulator_error(base, 2.0 * base.ttft_s)
    assert error.median_abs_frac == pytest.approx(0.5)
    assert error.median_log_ratio == pytest.approx(-np.log(2.0))


def run_of(credit: list[float]) -> SimulatedRun:
    return SimulatedRun(
        name="r", goodput_frac=0.5, ttft_p50_s=0.1, ttft_p99_s=0.2,
        credit_by_block=np.array(credit), weight_by_block=np.full(len(credit), 10.0),
        ttft_s=np.zeros(1),
    )  # fmt: skip


def test_advice_needs_a_gain_that_is_sure(tmp_path: Path) -> None:
    log_run(tmp_path, ROUND_ROBIN, number=40)
    nominal = replica_coefficients(CLUSTER)
    remade = redecide(read_candidates(tmp_path / "decisions"), nominal, lambda _: ROUND_ROBIN)
    base, better, mixed = run_of([5.0] * 8), run_of([7.0] * 8), run_of([1.0, 9.5] * 4)
    sure = make_report("a", "b", remade, runs=(base, better, gain_of(better, base)))
    assert sure.advice == "promote"
    assert sure.gain is not None
    assert sure.gain.mean == pytest.approx(0.2)
    unsure = make_report("a", "b", remade, runs=(base, mixed, gain_of(mixed, base)))
    assert unsure.advice == "hold"
    assert "lower bound of the simulated gain" in unsure.objections[0]


def test_access_logs_of_nginx_and_envoy_are_read(tmp_path: Path) -> None:
    lines = [
        {"msec": 100.5, "upstream_addr": "h:1, h:2", "request_time": 0.5, "status": 200,
         "request_length": 900, "upstream_header_time": "-, 0.2", "request_id": "a"},
        {"start_time": "1970-01-01T00:01:39Z", "upstream_host": "h:1", "duration": 250,
         "bytes_received": 450, "response_code": 200, "response_duration": 100},
        {"msec": 1, "upstream_addr": "h:9", "request_time": 0.5, "request_length": 1},
        {"msec": 1, "upstream_addr": "h:1"},
    ]  # fmt: skip
    path = tmp_path / "access.log"
    path.write_text("\n".join([*map(json.dumps, lines), "no json", ""]))
    log = read_access_log(path, {"h:1": "one", "h:2": "two"})
    first, second = log.requests
    assert (first.replica, first.arrived_s, first.span_s, first.first_s) == ("one", 0.0, 0.25, 0.1)
    assert (second.replica, second.arrived_s, second.first_s) == ("two", 1.0, 0.2)
    assert log.left_out == {"unknown upstream h:9": 1, "no span": 1, "no JSON": 1}


def test_a_log_that_says_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "access.log").write_text('{"a": 1}\n')
    with pytest.raises(ShadowError, match=r"no line that can be used.*upstream_addr"):
        read_access_log(tmp_path / "access.log", {})


def test_beside_a_router_that_piles_up_ours_spreads(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the extra 'engines' is not installed")
    tiny = LocalReplica(model=TinyModel(num_layers=1, width=64))
    spec, _ = plan_fleet([tiny, tiny], tmp_path)
    first = spec.replicas[0]
    path = tmp_path / "access.log"
    lines = [
        {"msec": 10.0 + 0.1 * i + 2.0, "upstream_addr": f"{first.host}:{first.port}",
         "request_time": 2.0, "request_length": 2000, "request_id": f"r{i}"}
        for i in range(40)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)))
    log = read_access_log(path, {f"{r.host}:{r.port}": r.name for r in spec.replicas})
    least = heuristic("least-requests").knobs
    remade = decide_beside(log.requests, spec, least, limits=(1.0, 0.1))
    # All went to one, so ours would have chosen the other but for the first.
    assert [each.is_same for each in remade] == [True] + [False] * 39
    arguments = ["shadow", "beside", "--fleet", str(tmp_path / "fleet.yaml"), "--access-log"]
    page = tmp_path / "page.html"
    result = CliRunner().invoke(
        app, [*arguments, str(path), "--scheduler", "least-requests", "--html", str(page)]
    )
    assert result.exit_code == 0, result.output
    assert "they agree in 2%" in " ".join(result.output.split())
    assert "least-requests in shadow beside the router" in page.read_text()
