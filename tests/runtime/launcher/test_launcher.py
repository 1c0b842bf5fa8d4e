"""Local fleets: files, models, and real servers that come up, come back and go."""

import hashlib
import http.client
import json
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.workload import compile_workload
from trimtab.runtime.launcher.fleet_plan import LocalReplica, plan_fleet
from trimtab.runtime.launcher.live_fleet_file import read_live_fleet
from trimtab.runtime.launcher.supervisor import FleetError, local_fleet, running_fleet
from trimtab.runtime.launcher.throttle import Throttle
from trimtab.runtime.launcher.tiny_model import TinyModel, tiny_model_file, write_tiny_model
from trimtab.traces.bundled import load_bundled
from trimtab.traces.errors import ConfigError
from trimtab.traces.superposition import superpose

pytest.importorskip("gguf", reason="the extra 'engines' is not installed")
SMALL = LocalReplica(model=TinyModel(num_layers=2, width=128), slots=2, slot_tokens=256)


def test_the_same_numbers_give_the_same_model(tmp_path: Path) -> None:
    model = TinyModel(num_layers=1, width=64)
    first = write_tiny_model(model, tmp_path / "a.gguf")
    assert write_tiny_model(model, tmp_path / "b.gguf") == first
    assert write_tiny_model(TinyModel(num_layers=1, width=64, seed=2), tmp_path / "c") != first
    assert hashlib.sha256((tmp_path / "a.gguf").read_bytes()).hexdigest() == first


def test_a_spoilt_model_file_is_made_anew(tmp_path: Path) -> None:
    model = TinyModel(num_layers=1, width=64)
    path = tiny_model_file(model, tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    assert tiny_model_file(model, tmp_path).read_bytes() == whole
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"width": 100}, "multiple of 64"),
    ],
)
def test_impossible_models_are_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TinyModel(**values)


def test_a_planned_fleet_can_be_simulated(tmp_path: Path) -> None:
    big = LocalReplica(model=TinyModel(num_layers=4, width=128), slots=2, slot_tokens=256)
    spec, servers = plan_fleet([SMALL, SMALL, big], tmp_path)
    assert spec == read_live_fleet(tmp_path / "fleet.yaml")
    assert [replica.name for replica in spec.cluster.replicas] == [
        "local/tiny-2x128-0", "local/tiny-2x128-1", "local/tiny-4x128-0",
    ]  # fmt: skip
    assert len({server.port for server in servers}) == 3
    trace = superpose(load_bundled("azure-conv"), rate_rps=2.0, span_s=5.0, seed=0)
    small, _ = plan_fleet([SMALL], tmp_path / "one")
    fleet = SimulatedFleet(small.cluster, compile_workload(trace, name="t"))
    fleet.reset(seed=0)
    fleet.drain()
    assert fleet.num_open == 0


def test_all_faults_of_a_fleet_file_are_told_at_once(tmp_path: Path) -> None:
    plan_fleet([SMALL], tmp_path)
    (tmp_path / "bad.yaml").write_text(
        "cluster: cluster.yaml\nreplicas:\n"
        "  - {name: nobody, engine: vlm, url: 'https://x', model: tiny}\n"
    )
    with pytest.raises(ConfigError) as caught:
        read_live_fleet(tmp_path / "bad.yaml")
    text = str(caught.value)
    assert "replicas[0].engine" in text
    assert "must be http://HOST:PORT without a path, got 'https://x'" in text
    (tmp_path / "bad.yaml").write_text(
        "cluster: cluster.yaml\nreplicas:\n"
        "  - {name: nobody, engine: vllm, url: 'http://x:1', model: tiny, api_key_env: NO_KEY}\n"
    )
    with pytest.raises(ConfigError) as caught:
        read_live_fleet(tmp_path / "bad.yaml")
    text = str(caught.value)
    assert "the cluster has no replica 'nobody'; it has local/tiny-2x128-0" in text
    assert "no entry for local/tiny-2x128-0" in text
    assert "the variable 'NO_KEY' is not set" in text


def test_a_missing_model_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no model file '/no/such\.gguf'"):
        plan_fleet([SMALL], tmp_path, model_path=Path("/no/such.gguf"))


def complete(port: int, *, max_tokens: int = 4) -> dict[str, object]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"model": "tiny", "prompt": "the queue of", "max_tokens": max_tokens})
    connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert isinstance(answer, dict)
    return answer


def wait_for(condition, timeout_s: float = 60.0) -> None:  # type: ignore[no-untyped-def]
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "it did not happen in time"
        time.sleep(0.02)


def test_real_servers_answer_restart_and_leave_nothing_behind(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the extra 'engines' is not installed")
    with running_fleet([SMALL, SMALL], tmp_path) as fleet:
        first, second = fleet.servers
        usage = complete(first.plan.port)["usage"]
        assert isinstance(usage, dict)
        assert usage["completion_tokens"] == 4
        old = second.pid
        fleet.kill(second.plan.name)
        wait_for(lambda: second.pid not in (None, old))
        wait_for(lambda: complete_or_none(second.plan.port))
        assert second.num_restarts == 1
        fleet.freeze(first.plan.name)
        assert first.pid is not None
        process = psutil.Process(first.pid)
        wait_for(lambda: process.status() == psutil.STATUS_STOPPED)
        pids = [server.pid for server in fleet.servers]
    assert not any(pid is not None and psutil.pid_exists(pid) for pid in pids)


def complete_or_none(port: int) -> bool:
    try:
        return bool(complete(port, max_tokens=1))
    except OSError:
        return False


def test_a_server_that_never_comes_up_says_its_last_words(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no model")
    fleet = local_fleet([SMALL], tmp_path, model_path=broken)
    fleet.servers[0].command = ["/bin/sh", "-c", "echo cannot load; exit 3"]
    with pytest.raises(FleetError, match=r"(?s)did not become healthy.*cannot load"):
        fleet.start(timeout_s=0.5)
    assert fleet.servers[0].pid is None


def test_unknown_replicas_are_named(tmp_path: Path) -> None:
    fleet = local_fleet([SMALL], tmp_path)
    with pytest.raises(FleetError, match="no replica 'x'; it has local/tiny-2x128-0"):
        fleet.kill("x")


def share_of_a_core(pid: int, span_s: float) -> float:
    process = psutil.Process(pid)
    begin_s, began_at_s = process.cpu_times().user, time.monotonic()
    time.sleep(span_s)
    return (process.cpu_times().user - begin_s) / (time.monotonic() - began_at_s)


def test_a_slowed_process_gets_its_share(tmp_path: Path) -> None:
    process = subprocess.Popen(["/bin/sh", "-c", "while :; do :; done"])
    try:
        throttle = Throttle(5.0, lambda: process.pid)
        throttle.start()
        # Where its throttle is not let run for a while, the next while shows it.
        wait_for(lambda: share_of_a_core(process.pid, 0.4) < 0.5)
        throttle.close()
    finally:
        process.kill()
        process.wait()
