"""Policies take turns on a live fleet; what came of it is told as in the simulator, or absent."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from trimtab.agents.heuristics import heuristic
from trimtab.agents.policy import Policy, constant_policy
from trimtab.env.cluster import ClusterSpec
from trimtab.env.cluster_file import load_cluster
from trimtab.env.fleet import WindowOutcome
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, Knobs
from trimtab.env.scenario import Part, scenario_from_trace
from trimtab.env.state.cluster_state import ClusterState
from trimtab.env.state.random_state import FleetSize, random_state
from trimtab.runtime.live_fleet.live_evaluation import evaluate_live, turn_order
from trimtab.runtime.live_fleet.live_traffic import (
    ComingTraffic,
    PlayedTraffic,
    TurnOutcome,
    client_kpis,
    gateway_kpis,
)
from trimtab.runtime.load.load_process import LoadError, LoadProcess
from trimtab.runtime.load.player import LoadConfig
from trimtab.runtime.load.results import RESULT_DTYPE
from trimtab.runtime.simulated_engine.batch import EngineSpeed
from trimtab.runtime.simulated_engine.server import SimulatedEngine
from trimtab.traces.bundled import load_bundled
from trimtab.traces.schema import RequestTrace

ROUND_ROBIN, LEAST = (constant_policy(heuristic(n)) for n in ("round-robin", "least-requests"))


@dataclass
class TimedFleet:
    """A fleet on which a window passes at once, and round-robin meets half of what comes."""

    now_s: float = 0.0
    knobs: Knobs = ANALYTIC_SCORER_KNOBS
    deeds: list[str] = field(default_factory=list)

    @property
    def cluster(self) -> ClusterSpec:
        return load_cluster("demo-16")

    def reset(self, *, seed: int, knobs: Knobs | None = None) -> ClusterState:
        self.deeds.append("reset")
        return self.state()

    def apply(self, knobs: Knobs) -> Knobs:
        self.knobs = knobs
        return knobs

    def advance(self, span_s: float) -> WindowOutcome:
        self.now_s += span_s
        self.deeds.append("advance")
        credit = 5.0 if np.array_equal(self.knobs.values, ROUND_ROBIN.knobs.values) else 10.0
        return WindowOutcome(
            start_s=self.now_s - span_s, end_s=self.now_s, num_arrived=10, num_finished=8,
            num_shed=1, num_failed=1, arrived_weight=10.0, credit=credit, energy_j=float("nan"),
        )  # fmt: skip

    def drain(self) -> None:
        """Wait for nothing."""

    def state(self) -> ClusterState:
        return random_state(np.random.default_rng(0), FleetSize(num_servers=1))

    def credit_by_window(self, window_s: float, num_windows: int) -> np.ndarray:
        return np.zeros(num_windows)


@dataclass
class Moving:
    """A policy that sets other knobs each window."""

    name: str = "moving"
    is_constant: bool = False
    num_acts: int = 0

    def begin(self) -> Knobs:
        return ANALYTIC_SCORER_KNOBS

    def act(self, state: ClusterState) -> Knobs:
        self.num_acts += 1
        return ANALYTIC_SCORER_KNOBS.replace({"backlog": 1.0 + self.num_acts})


def coming(fleet: TimedFleet, span_s: float = 6.0) -> ComingTraffic:
    return ComingTraffic(span_s=span_s, clock=lambda: fleet.now_s)


def test_the_order_of_a_round_mirrors_the_last() -> None:
    names = ["a", "b", "c"]
    assert [turn_order(names, i) for i in range(3)] == [names, names[::-1], names]


def test_policies_are_paired_by_round() -> None:
    fleet, turns = TimedFleet(), []
    makers = {policy.name: (lambda policy=policy: policy) for policy in (ROUND_ROBIN, LEAST)}
    evaluation = evaluate_live(
        fleet, makers, coming(fleet), num_rounds=3, on_run=lambda: turns.append(fleet.now_s)
    )
    assert turns == [6.0, 12.0, 18.0, 24.0, 30.0, 36.0]
    assert fleet.deeds == ["reset", "advance", "advance", "advance"] * 6
    assert evaluation.is_live
    assert evaluation.scenario == "traffic that came on demo-16"
    assert evaluation.rate_rps == pytest.approx(5.0)
    assert evaluation.num_workloads == 3
    assert evaluation.result("round-robin").values("goodput_frac").tolist() == [0.5] * 3
    interval = evaluation.difference("least-requests", "round-robin")
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)
    assert evaluation.knob_tracks == ()


def test_a_policy_that_moves_is_asked_each_window_and_its_knobs_are_kept() -> None:
    fleet, made = TimedFleet(), []

    def make() -> Policy:
        made.append(Moving())
        return made[-1]

    evaluation = evaluate_live(fleet, {"moving": make}, coming(fleet), num_rounds=2)
    assert [policy.num_acts for policy in made] == [3, 3]
    (track,) = evaluation.knob_tracks
    assert track.at_s.tolist() == [0.0, 2.0, 4.0]
    assert track.values["backlog"].tolist() == [2.0, 3.0, 4.0]


def test_knobs_beyond_the_gateways_limits_are_told(caplog: pytest.LogCaptureFixture) -> None:
    class Bounded(TimedFleet):
        def apply(self, knobs: Knobs) -> Knobs:
            return ANALYTIC_SCORER_KNOBS

    fleet = Bounded()
    evaluate_live(fleet, {"round-robin": lambda: ROUND_ROBIN}, coming(fleet), num_rounds=1)
    assert "knobs of 'round-robin' are beyond the gateway's limits" in caplog.text


def test_nothing_to_play_is_an_error() -> None:
    fleet = TimedFleet()
    with pytest.raises(ValueError, match="at least 1 round and 1 policy, got 0 and 1"):
        evaluate_live(fleet, {"a": lambda: LEAST}, coming(fleet), num_rounds=0)
    with pytest.raises(ValueError, match="at least 1 round and 1 policy, got 1 and 0"):
        evaluate_live(fleet, {}, coming(fleet), num_rounds=1)


def test_a_turn_is_closed_though_the_policy_raises() -> None:
    @dataclass
    class Turn:
        is_closed: bool = False
        is_over: bool = False

        def outcome(self, windows: Sequence[WindowOutcome]) -> TurnOutcome:
            raise AssertionError

        def close(self) -> None:
            self.is_closed = True

    @dataclass
    class Only:
        turn: Turn = field(default_factory=Turn)
        name: str = "one turn"

        def begin(self, round_index: int, turn_index: int) -> Turn:
            return self.turn

    class Broken(Moving):
        def act(self, state: ClusterState) -> Knobs:
            msg = "no idea"
            raise RuntimeError(msg)

    traffic = Only()
    with pytest.raises(RuntimeError, match="no idea"):
        evaluate_live(TimedFleet(), {"broken": Broken}, traffic, num_rounds=1)
    assert traffic.turn.is_closed


def test_clients_indicators_have_known_answers() -> None:
    results = np.zeros(5, RESULT_DTYPE)
    results["due_s"] = [0.0, 1.0, 2.0, 3.0, 4.0]
    results["first_s"] = [0.5, 1.5, np.nan, 3.1, 4.1]
    results["end_s"] = [1.5, 5.5, 2.1, np.nan, 6.1]
    results["status"] = [200, 200, 429, 200, 200]
    results["output_tokens"] = [11, 21, 0, 3, 1]
    results["is_whole"] = [1, 1, 0, 0, 1]
    results["ttft_slo_s"], results["tpot_slo_s"] = 1.0, 0.15
    results["weight"] = [2.0, 2.0, 2.0, 1.0, 1.0]
    kpis = client_kpis(results)
    # Met: the first and the last; the second's TPOT is 0.2 s.
    assert kpis.goodput_frac == pytest.approx(3.0 / 8.0)
    assert kpis.slo_violation_frac == pytest.approx(3.0 / 5.0)
    assert (kpis.shed_frac, kpis.failed_frac) == (0.2, 0.2)
    assert kpis.ttft_p50_s == pytest.approx(0.3)
    assert kpis.tpot_p50_s == pytest.approx(0.15)
    assert kpis.e2e_p99_s == pytest.approx(4.5, rel=0.02)
    assert np.isnan(kpis.energy_kwh)
    assert np.isnan(kpis.prefix_hit_frac)
    with pytest.raises(ValueError, match="got 0 requests"):
        client_kpis(results[:0])


def test_a_gateways_counts_say_nothing_of_latency() -> None:
    fleet = TimedFleet()
    kpis = gateway_kpis([fleet.advance(2.0), fleet.advance(2.0)])
    assert kpis.num_requests == 20
    assert (kpis.goodput_frac, kpis.shed_frac, kpis.failed_frac) == (1.0, 0.1, 0.1)
    assert np.isnan(kpis.ttft_p99_s)
    with pytest.raises(ValueError, match="no request arrived in a turn"):
        gateway_kpis([])


def make_played(rate_rps: float = 30.0, port: int = 1) -> PlayedTraffic:
    scenario = scenario_from_trace(
        load_bundled("azure-conv"), name="azure", cluster=load_cluster("demo-16"), span_s=1.0
    )
    return PlayedTraffic(
        scenario=scenario, rate_rps=rate_rps, load=LoadConfig(port=port, model="tiny"),
        part=Part.TEST,
    )  # fmt: skip


def test_turns_of_a_round_arrive_alike_and_share_no_prompt() -> None:
    traffic = make_played()
    one, other, later = traffic.trace(0, 0), traffic.trace(0, 1), traffic.trace(1, 0)
    np.testing.assert_array_equal(one.arrival_s, other.arrival_s)
    np.testing.assert_array_equal(one.input_tokens, other.input_tokens)
    assert not np.isin(one.prefix_block_hashes, other.prefix_block_hashes).any()
    assert not np.array_equal(one.arrival_s, later.arrival_s)
    # Requests without limits have those of their class.
    assert set(one.ttft_slo_s) == {0.5}
    assert set(one.tpot_slo_s) == {0.05}


@contextmanager
def engine_in_a_thread() -> Iterator[int]:
    """Serve a simulated engine beside the test; yield its port."""
    loop = asyncio.new_event_loop()
    engine = SimulatedEngine(EngineSpeed(step_s=0.001), model="tiny")
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(engine.start(), loop).result(60)
    finally:
        asyncio.run_coroutine_threadsafe(engine.close(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_a_load_in_a_process_of_its_own_is_played_to_its_end() -> None:
    with engine_in_a_thread() as port:
        turn = make_played(port=port).begin(0, 0)
        try:
            while not turn.is_over:
                time.sleep(0.01)
            outcome = turn.outcome([])
        finally:
            turn.close()
    assert outcome.kpis.num_requests == 30
    assert outcome.kpis.failed_frac == 0.0
    assert outcome.ttft_s.size == 30
    assert 0.0 < outcome.kpis.ttft_p50_s < 10.0


def test_a_load_that_is_stopped_leaves_nothing_behind() -> None:
    with engine_in_a_thread() as port:
        turn = make_played(port=port).begin(0, 0)
        directory = turn._directory.name
        turn.close()
    assert turn.is_over
    assert not Path(directory).exists()


def test_a_load_whose_process_fails_is_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    trace = RequestTrace.from_columns(arrival_s=[0.0], input_tokens=[10], output_tokens=[1])
    directory = tmp_path_factory.mktemp("load")
    config = LoadConfig(port=1, model="tiny")
    object.__setattr__(config, "patience_s", -1.0)
    with pytest.raises(LoadError, match="ended with 1 before it was ready"):
        LoadProcess(trace, config, directory)
