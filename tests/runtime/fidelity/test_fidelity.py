"""Times measured from outside and fits of recorded runs, on engines whose times are known."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trimtab.env.cluster import ClusterSpec
from trimtab.env.cluster_file import load_cluster
from trimtab.env.measured_latency import MeasuredLatency
from trimtab.runtime.engines.live_replica import EngineKind, LiveReplica
from trimtab.runtime.fidelity.engine_times import MeasurementError, MeasurePlan, measure_engine
from trimtab.runtime.fidelity.live_fit import (
    RecordedRun,
    fit_run,
    parts_of,
    simulated_times,
    time_errors,
    with_times,
)
from trimtab.runtime.launcher.fleet_plan import LocalReplica, plan_fleet, set_measured
from trimtab.runtime.launcher.tiny_model import TinyModel
from trimtab.runtime.simulated_engine.batch import EngineSpeed
from trimtab.runtime.simulated_engine.server import SimulatedEngine
from trimtab.traces.schema import RequestTrace

TRUE = MeasuredLatency(step_s=0.004, token_s=2e-4, sequence_s=1e-3)


def replica_at(port: int) -> LiveReplica:
    return LiveReplica(
        name="r", engine=EngineKind.SIMULATED, host="127.0.0.1", port=port, model="simulated"
    )


def are_right(found: MeasuredLatency) -> bool:
    # The engine counts a token for every 4 bytes, a little more than one a word.
    return (
        found.step_s == pytest.approx(0.008, rel=0.3)
        and found.sequence_s + found.token_s == pytest.approx(2e-3, rel=0.4)
        and 0.5e-4 < found.token_s < 3e-4
    )


def test_an_engines_times_are_found_from_outside() -> None:
    async def run() -> MeasuredLatency:
        speed = EngineSpeed(step_s=0.008, prefill_token_s=1e-4, decode_seq_s=2e-3)
        engine = SimulatedEngine(speed)
        port = await engine.start()
        plan = MeasurePlan(output_tokens=12, repeats=2)
        try:
            return await measure_engine(replica_at(port), plan)
        finally:
            await engine.close()

    # Measured in real time: a busy machine may need several attempts.
    found = []
    while not found or (len(found) < 20 and not are_right(found[-1])):
        found.append(asyncio.run(run()))
    assert are_right(found[-1]), found


def test_nobody_there_cannot_be_measured() -> None:
    with pytest.raises(MeasurementError, match=r"replica 'r' at http://127\.0\.0\.1:1 cannot be"):
        asyncio.run(measure_engine(replica_at(1), MeasurePlan()))


def two_replicas() -> ClusterSpec:
    cluster = load_cluster("demo-16")
    return replace(
        cluster, replicas=tuple(replace(r, max_num_seqs=8) for r in cluster.replicas[:2])
    )


def recorded_run(cluster: ClusterSpec, *, seed: int, number: int = 120) -> RecordedRun:
    """Return a run of engines whose times are known: the second one is twice as slow."""
    rng = np.random.default_rng(seed)
    trace = RequestTrace.from_columns(
        arrival_s=np.sort(rng.uniform(0, 20, number)),
        input_tokens=rng.integers(20, 400, number), output_tokens=rng.integers(2, 40, number),
    )  # fmt: skip
    replica = rng.integers(2, size=number)
    empty = RecordedRun(trace=trace, replica=replica, ttft_s=np.zeros(0), tpot_s=np.zeros(0))
    truth = with_times(cluster, TRUE, [1.0, 2.0])
    first_s, per_token_s = simulated_times(parts_of(empty, truth), truth, number)
    return RecordedRun(trace=trace, replica=replica, ttft_s=first_s, tpot_s=per_token_s)


def test_a_fit_to_one_run_foretells_another() -> None:
    cluster = two_replicas()
    start = MeasuredLatency(step_s=0.002, token_s=4e-4, sequence_s=5e-4)
    fitted = fit_run(recorded_run(cluster, seed=1), cluster, start, num_generations=40)
    other = recorded_run(cluster, seed=2)
    before = time_errors(other, with_times(cluster, start, [1.0, 1.0]))
    after = time_errors(other, fitted)
    assert abs(after.ttft_median) < 0.15 < abs(before.ttft_median)
    assert abs(after.tpot_median) < 0.15
    assert after.request_ttft_median < 0.2


def test_measured_times_go_into_the_cluster_file(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the extra 'engines' is not installed")
    plan_fleet([LocalReplica(model=TinyModel(num_layers=1, width=64))] * 2, tmp_path)
    spec = set_measured(tmp_path, TRUE)
    for replica in spec.cluster.replicas:
        assert replica.measured is not None
        assert replica.measured.step_s == pytest.approx(TRUE.step_s)
        assert replica.measured.sequence_s == pytest.approx(TRUE.sequence_s)
