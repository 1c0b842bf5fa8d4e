"""A recorded run is a trace: it replays in the simulator, and holds no prompt."""

from pathlib import Path

import numpy as np
from live_requests import make_dispatcher, make_facts, run_request, three_replicas

from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.workload import compile_workload
from trimtab.runtime.dispatcher.request import Ending, Placement, RequestEnd
from trimtab.runtime.recorder.recorder import Recorder, read_outcomes
from trimtab.traces.store import read_store

CLUSTER = three_replicas()
NAMES = [replica.name for replica in CLUSTER.replicas]


def make_recorder(directory: Path) -> Recorder:
    return Recorder(directory, NAMES)


def test_a_recorded_run_replays_in_the_simulator(tmp_path: Path) -> None:
    dispatcher, recorder = make_dispatcher(CLUSTER), make_recorder(tmp_path)
    dispatcher.listeners.append(recorder)
    for number in range(40):
        run_request(dispatcher, make_facts(number, 1000.0 + 0.25 * number))
    recorder.flush()
    trace = read_store(tmp_path / "trace")
    assert len(trace) == 40
    np.testing.assert_allclose(trace.arrival_s, 0.25 * np.arange(40), atol=1e-9)
    # Lengths are the engine's, not the estimates.
    assert trace.input_tokens.tolist() == [301 + number for number in range(40)]
    assert set(trace.output_tokens.tolist()) == {20}
    assert trace.block_tokens == 64
    assert np.unique(trace.session_ids).size == 4
    assert np.unique(trace.prefix_block_hashes).size == 16
    fleet = SimulatedFleet(CLUSTER, compile_workload(trace, name="live"))
    fleet.reset(seed=0)
    fleet.drain()
    assert fleet.num_open == 0
    assert fleet.requests["hit_tokens"].sum() > 0
    outcomes = read_outcomes(tmp_path).to_pylist()
    assert [row["request_id"] for row in outcomes] == [f"req-{i}" for i in range(40)]
    assert {row["ending"] for row in outcomes} == {"finished"}
    assert abs(outcomes[0]["ttft_s"] - 0.1) < 1e-6
    assert outcomes[0]["replica"] in NAMES


def test_rows_wait_for_those_that_arrived_before(tmp_path: Path) -> None:
    dispatcher, recorder = make_dispatcher(CLUSTER), make_recorder(tmp_path)
    dispatcher.listeners.append(recorder)
    slow = dispatcher.dispatch(make_facts(0, 10.0), 10.0)
    assert isinstance(slow, Placement)
    run_request(dispatcher, make_facts(1, 11.0))
    recorder.flush()
    assert not (tmp_path / "trace").exists()
    end = RequestEnd(ending=Ending.ABORTED, status=0, ended_at_s=20.0, output_tokens=3)
    dispatcher.finish(slow, end)
    recorder.flush()
    assert read_store(tmp_path / "trace").output_tokens.tolist() == [3, 20]
    assert read_outcomes(tmp_path)["ending"].to_pylist() == ["aborted", "finished"]


def test_refused_requests_are_part_of_the_trace(tmp_path: Path) -> None:
    dispatcher, recorder = make_dispatcher(CLUSTER), make_recorder(tmp_path)
    dispatcher.listeners.append(recorder)
    for replica in range(3):
        dispatcher.set_available(replica, False, 0.0)
    run_request(dispatcher, make_facts(0, 5.0))
    recorder.flush()
    row = read_outcomes(tmp_path).to_pylist()[0]
    assert (row["ending"], row["status"], row["replica"]) == ("rejected-no-endpoints", 503, None)
    # What it would have given is only expected.
    assert read_store(tmp_path / "trace").output_tokens.tolist() == [40]


def test_later_parts_go_on_and_a_half_written_one_is_not_seen(tmp_path: Path) -> None:
    dispatcher, recorder = make_dispatcher(CLUSTER), make_recorder(tmp_path)
    dispatcher.listeners.append(recorder)
    for number in range(6):
        run_request(dispatcher, make_facts(number, float(number)))
        recorder.flush()
    (tmp_path / "outcomes" / ".part-000099.parquet.1.partial").write_bytes(b"half")
    assert len(read_store(tmp_path / "trace")) == 6
    assert read_outcomes(tmp_path).num_rows == 6


def test_windows_are_noted(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    recorder = make_recorder(tmp_path)
    recorder.note_window({"at_s": 1.0, "ruler": "policy", "knob_backlog": 1.5})
    recorder.flush()
    (part,) = (tmp_path / "windows").glob("*.parquet")
    assert pq.read_table(part).to_pylist() == [
        {"at_s": 1.0, "ruler": "policy", "knob_backlog": 1.5}
    ]
