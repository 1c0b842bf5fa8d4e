"""A live fleet at the other end of a link: the environment plays on it, its twin is measured."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from trimtab.env.cluster import ClusterSpec
from trimtab.env.cluster_file import load_cluster
from trimtab.env.fleet import WindowOutcome
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, Knobs
from trimtab.env.short_term_env import EpisodeConfig, ShortTermEnv
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.workload import compile_workload
from trimtab.env.state.cluster_state import ClusterState
from trimtab.env.state.feature import Node
from trimtab.runtime.live_fleet.live_fleet import LiveFleet, LiveFleetConfig
from trimtab.runtime.live_fleet.live_tasks import LiveTasks
from trimtab.traces.bundled import load_bundled
from trimtab.traces.superposition import superpose


@dataclass
class SimulatedLink:
    """A simulated fleet that plays the live one: it goes on through all resets, as that does."""

    fleet: SimulatedFleet
    applied: list[Knobs] = field(default_factory=list)
    spans_s: list[float] = field(default_factory=list)

    def cluster(self) -> ClusterSpec:
        return self.fleet.cluster

    def state(self) -> ClusterState:
        return self.fleet.state()

    def apply(self, knobs: Knobs) -> Knobs:
        self.applied.append(knobs)
        return self.fleet.apply(knobs)

    def advance(self, span_s: float) -> WindowOutcome:
        self.spans_s.append(span_s)
        return self.fleet.advance(span_s)


@pytest.fixture
def link() -> SimulatedLink:
    trace = superpose(load_bundled("azure-conv"), rate_rps=20.0, span_s=60.0, seed=1)
    fleet = SimulatedFleet(load_cluster("demo-16"), compile_workload(trace, name="plain"))
    fleet.reset(seed=0, knobs=ANALYTIC_SCORER_KNOBS)
    return SimulatedLink(fleet)


def test_the_environment_plays_on_a_live_fleet(link: SimulatedLink) -> None:
    fleet = LiveFleet(link, LiveFleetConfig(drain_s=5.0))
    episode = EpisodeConfig(num_windows=3)
    env = ShortTermEnv(tasks=LiveTasks(fleet, num_base_windows=4), episode=episode)
    observation, _ = env.reset(seed=0)
    # The base setting was measured first, over the windows that a twin needs.
    assert link.spans_s == [2.0] * 4
    measured = env.task.twin
    assert env.observation_space.contains(observation)
    credits, rewards = [], []
    is_last = False
    while not is_last:
        observation, reward, _, is_last, info = env.step(
            np.zeros(env.action_space.shape, np.float32)
        )
        credits.append(info["outcome"]["credit"])
        rewards.append(reward)
    assert len(credits) == 3
    weight = measured.weight_per_window
    assert weight == pytest.approx(20.0 * 2.0 * 2.0, rel=0.4)
    expected = (np.array(credits[:2]) - measured.resolved[0]) / weight
    assert rewards[:2] == pytest.approx(expected)
    # The last step also has what the drain brought, held against nothing.
    brought = rewards[2] - (credits[2] - measured.resolved[2]) / weight
    assert brought > 0.0
    assert np.sum(info["arrival_reward"]) == pytest.approx(np.sum(rewards))


def test_without_measurement_the_reward_is_credit_alone(link: SimulatedLink) -> None:
    tasks = LiveTasks(LiveFleet(link), num_base_windows=0, weight_per_window=10.0)
    env = ShortTermEnv(tasks=tasks, episode=EpisodeConfig(num_windows=2))
    env.reset(seed=0)
    assert env.task.twin.resolved.tolist() == [0.0, 0.0, 0.0]
    _, reward, _, _, info = env.step(np.zeros(env.action_space.shape, np.float32))
    assert reward == pytest.approx(info["outcome"]["credit"] / 10.0)


def test_a_drain_ends_when_nothing_is_open(link: SimulatedLink) -> None:
    fleet = LiveFleet(link, LiveFleetConfig(settle_s=100.0, drain_s=100.0))
    fleet.reset(seed=0)
    assert link.spans_s == []
    fleet.advance(70.0)
    fleet.drain()
    assert fleet.num_open == 0
    assert link.fleet.num_open == 0
    assert sum(link.spans_s) < 170.0
    total = link.fleet.credit_by_window(1e9, 1).sum()
    credit = fleet.credit_by_window(2.0, 35)
    assert credit.sum() == pytest.approx(total)
    assert (credit >= 0.0).all()


def test_a_drain_gives_up_where_requests_keep_coming(link: SimulatedLink) -> None:
    fleet = LiveFleet(link, LiveFleetConfig(drain_s=1.0))
    fleet.advance(10.0)
    fleet.drain()
    assert sum(link.spans_s) == pytest.approx(11.0)
    assert fleet.num_open > 0


def test_a_window_stands_where_it_ended_though_others_were_late(link: SimulatedLink) -> None:
    fleet = LiveFleet(link)
    fleet.reset(seed=0)
    fleet.advance(2.0)
    first = fleet.credit_by_window(2.0, 3)
    fleet.advance(2.1)
    credit = fleet.credit_by_window(2.0, 3)
    assert credit[0] == first[0]
    assert credit[1] > 0.0
    assert credit[2] == 0.0


def test_a_state_knows_what_a_policy_observes(link: SimulatedLink) -> None:
    state = LiveFleet(link).reset(seed=0)
    assert state.age_s[Node.REPLICA].size == 16


@pytest.mark.parametrize("name", ["settle_s", "drain_s"])
def test_waiting_times_are_not_negative(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 0, got -1"):
        LiveFleetConfig(**{name: -1.0})


def test_tasks_say_what_they_cannot_be(link: SimulatedLink) -> None:
    fleet = LiveFleet(link)
    with pytest.raises(ValueError, match="num_base_windows must be at least 0, got -1"):
        LiveTasks(fleet, num_base_windows=-1)
    with pytest.raises(ValueError, match=r"weight_per_window must be above 0, got 0\.0"):
        LiveTasks(fleet, weight_per_window=0.0)
