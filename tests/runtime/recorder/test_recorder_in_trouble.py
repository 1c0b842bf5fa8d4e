"""A recording under kills, full disks, restarts and odd requests; nothing of a prompt is in it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from live_requests import make_dispatcher, make_facts, run_request, three_replicas

from trimtab.runtime.dispatcher.live_dispatcher import LiveDispatcher
from trimtab.runtime.dispatcher.request import Ending, Placement, RequestEnd, RequestFacts
from trimtab.runtime.gateway.tenants import Tenant
from trimtab.runtime.recorder import recording
from trimtab.runtime.recorder.recorder import Recorder, read_outcomes
from trimtab.runtime.understanding.openai_reader import OpenAiReader
from trimtab.runtime.understanding.reader import Call
from trimtab.runtime.understanding.served_models import ServedModel
from trimtab.traces.errors import TraceError
from trimtab.traces.store import read_store

CLUSTER = three_replicas()
NAMES = [replica.name for replica in CLUSTER.replicas]


def recorded(directory: Path) -> tuple[LiveDispatcher, Recorder]:
    dispatcher, recorder = make_dispatcher(CLUSTER), Recorder(directory, NAMES)
    dispatcher.listeners.append(recorder)
    return dispatcher, recorder


def finish(dispatcher: LiveDispatcher, placement: object, at_s: float) -> None:
    assert isinstance(placement, Placement)
    end = RequestEnd(ending=Ending.FINISHED, status=200, ended_at_s=at_s, output_tokens=5)
    dispatcher.finish(placement, end)


def test_a_client_may_send_one_id_twice(tmp_path: Path) -> None:
    dispatcher, recorder = recorded(tmp_path)
    first = dispatcher.dispatch(make_facts(0, 10.0), 10.0)
    second = dispatcher.dispatch(make_facts(0, 11.0), 11.0)
    finish(dispatcher, second, 12.0)
    finish(dispatcher, first, 13.0)
    recorder.flush()
    outcomes = read_outcomes(tmp_path).to_pylist()
    assert [row["request_id"] for row in outcomes] == ["req-0", "req-0"]
    assert [row["end_s"] for row in outcomes] == [3.0, 1.0]


def test_every_session_hash_fits_and_none_is_no_session(tmp_path: Path) -> None:
    dispatcher, recorder = recorded(tmp_path)
    for number, session in enumerate((2**63 - 1, 2**63 - 2, 0, 0)):
        run_request(dispatcher, make_facts(number, float(number), session_hash=session))
    recorder.flush()
    assert recorder.num_dropped == 0
    column = read_store(tmp_path / "trace").table["session"].to_pylist()
    assert column[:2] == [2**62 - 1, 2**62 - 2]
    assert column[2:] == [None, None]


def test_a_second_run_goes_on_where_the_first_ended(tmp_path: Path) -> None:
    for start_s in (5000.0, 70.0):  # the machine was started anew between the two
        dispatcher, recorder = recorded(tmp_path)
        for number in range(3):
            run_request(dispatcher, make_facts(number, start_s + number))
        recorder.close()
    trace = read_store(tmp_path / "trace")
    np.testing.assert_allclose(trace.arrival_s, [0, 1, 2, 2, 3, 4], atol=1e-9)
    assert read_outcomes(tmp_path)["arrived_at_s"].to_pylist()[3:] == [70.0, 71.0, 72.0]


def test_at_the_end_an_open_request_holds_nobody_back(tmp_path: Path) -> None:
    dispatcher, recorder = recorded(tmp_path)
    dispatcher.dispatch(make_facts(0, 10.0), 10.0)
    run_request(dispatcher, make_facts(1, 11.0))
    recorder.close()
    assert read_outcomes(tmp_path)["request_id"].to_pylist() == ["req-1"]
    assert (recorder.num_written, recorder.num_dropped) == (1, 1)


def test_a_very_long_request_holds_back_two_minutes_at_most(tmp_path: Path) -> None:
    dispatcher, recorder = recorded(tmp_path)
    slow = dispatcher.dispatch(make_facts(0, 10.0), 10.0)
    run_request(dispatcher, make_facts(1, 11.0))
    run_request(dispatcher, make_facts(2, 129.0))
    recorder.flush()
    assert recorder.num_written == 0
    run_request(dispatcher, make_facts(3, 130.0))
    recorder.flush()
    assert recorder.num_written == 3
    finish(dispatcher, slow, 500.0)
    recorder.flush()
    assert read_outcomes(tmp_path)["request_id"].to_pylist()[-1] == "req-0"
    trace = read_store(tmp_path / "trace")
    np.testing.assert_allclose(trace.arrival_s, [0.0, 118.0, 119.0, 119.0], atol=1e-9)


@pytest.mark.parametrize("num_parts", [0, 2])
def test_a_kill_between_outcomes_and_trace_leaves_them_in_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_parts: int
) -> None:
    dispatcher, recorder = recorded(tmp_path)
    for number in range(num_parts):
        run_request(dispatcher, make_facts(number, float(number)))
        recorder.flush()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recording, "append_store" if num_parts else "write_store", killed)
        run_request(dispatcher, make_facts(7, 7.0))
        with pytest.raises(KeyboardInterrupt):
            recorder.flush()
    # A part that no manifest lists may lie there too.
    (tmp_path / "trace").mkdir(exist_ok=True)
    (tmp_path / "trace" / f"part-{num_parts:05d}.parquet").write_bytes(b"half")
    dispatcher, recorder = recorded(tmp_path)
    run_request(dispatcher, make_facts(9, 9.0))
    recorder.close()
    ids = [f"req-{each}" for each in range(num_parts)] + ["req-9"]
    assert read_outcomes(tmp_path)["request_id"].to_pylist() == ids
    assert len(read_store(tmp_path / "trace")) == len(ids)


def test_a_full_disk_costs_rows_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher, recorder = recorded(tmp_path)
    run_request(dispatcher, make_facts(0, 0.0))
    recorder.flush()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(recording.pq, "write_table", full)
        run_request(dispatcher, make_facts(1, 1.0))
        recorder.flush()
    run_request(dispatcher, make_facts(2, 2.0))
    recorder.flush()
    assert (recorder.num_written, recorder.num_dropped) == (2, 1)
    assert read_outcomes(tmp_path)["request_id"].to_pylist() == ["req-0", "req-2"]
    assert len(read_store(tmp_path / "trace")) == 2
    assert not list(tmp_path.rglob("*.partial"))


def test_a_recording_has_a_size(tmp_path: Path) -> None:
    dispatcher = make_dispatcher(CLUSTER)
    recorder = Recorder(tmp_path, NAMES, max_bytes=1 << 20)
    dispatcher.listeners.append(recorder)
    rng = np.random.default_rng(1)
    for number in range(40):
        blocks = rng.integers(0, 2**63, 8000).astype(np.uint64)
        facts = make_facts(number, float(number), blocks=blocks, input_tokens=600_000)
        run_request(dispatcher, facts)
        recorder.flush()
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.parquet"))
    assert 1 << 20 <= size <= (1 << 20) + 100_000
    assert recorder.num_dropped == 40 - recorder.num_written > 0
    assert len(read_store(tmp_path / "trace")) == recorder.num_written
    with pytest.raises(ValueError, match="max_bytes must be at least 1048576, got 7"):
        Recorder(tmp_path, NAMES, max_bytes=7)


def test_no_recording_is_said(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"has no manifest\.json"):
        read_outcomes(tmp_path)


def test_windows_may_say_different_things(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, NAMES)
    recorder.note_window({"at_s": 1.0})
    recorder.note_window({"at_s": 3.0, "state": b"\x01\x02"})
    recorder.flush()
    (part,) = (tmp_path / "windows").iterdir()
    assert pq.read_table(part)["state"].to_pylist() == [None, b"\x01\x02"]


def test_nothing_of_a_prompt_is_written(tmp_path: Path) -> None:
    secret = "The launch code is seven-one-nine, tell nobody. " * 20
    served = ServedModel(name="m", model_index=0, engine_name="m")
    reader = OpenAiReader((served,))
    dispatcher, recorder = recorded(tmp_path)
    body = {"model": "m", "messages": [{"role": "user", "content": secret}]}
    call = Call(
        path="/v1/chat/completions", headers={}, body=json.dumps(body).encode(),
        tenant=Tenant(name="shop"), request_id="r", arrived_at_s=1.0,
    )  # fmt: skip
    facts: RequestFacts = reader.read(call).facts
    assert facts.blocks.size > 0
    run_request(dispatcher, facts)
    recorder.close()
    assert len(read_store(tmp_path / "trace")) == 1
    for path in tmp_path.rglob("*"):
        assert b"launch" not in (path.read_bytes() if path.is_file() else b"")
    for part in tmp_path.rglob("*.parquet"):  # and not in a packed column
        assert "launch" not in str(pq.read_table(part, partitioning=None).to_pylist())


_WRITER = """
import sys, itertools
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from live_requests import make_dispatcher, make_facts, run_request, three_replicas
from trimtab.runtime.recorder.recorder import Recorder
cluster = three_replicas()
dispatcher = make_dispatcher(cluster)
recorder = Recorder(Path(sys.argv[1]), [each.name for each in cluster.replicas])
dispatcher.listeners.append(recorder)
for number in itertools.count():
    run_request(dispatcher, make_facts(number, float(number)))
    recorder.flush()
    if number == 3:
        print("going", flush=True)
"""


def test_what_was_written_outlives_a_kill(tmp_path: Path) -> None:
    tests = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", _WRITER, str(tmp_path), tests]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(os.environ)) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.05)
        writer.send_signal(signal.SIGKILL)
    trace = read_store(tmp_path / "trace")
    assert len(trace) >= 4
    assert read_outcomes(tmp_path).num_rows == len(trace)
    np.testing.assert_allclose(trace.arrival_s, np.arange(len(trace)))
