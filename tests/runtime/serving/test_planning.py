"""Long-term planning: replicas come and go with the load, within what may be done at a time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from trimtab.agents.shield.move_projection import MoveLimits
from trimtab.env.capacity import CapacityMove, MoveKind
from trimtab.env.cluster_file import load_cluster
from trimtab.env.fleet import WindowOutcome
from trimtab.env.masks import Mask
from trimtab.env.state.cluster_state import ClusterState
from trimtab.env.state.feature import Node
from trimtab.env.state.registry import column
from trimtab.runtime.engines.capability import Capability
from trimtab.runtime.engines.engine import Health, HealthState
from trimtab.runtime.engines.engine_error import EngineError
from trimtab.runtime.engines.live_replica import EngineKind, LiveReplica
from trimtab.runtime.observer.observer import layout_of
from trimtab.runtime.serving.plan_loop import PlanLoop
from trimtab.runtime.serving.planner import Hold, TargetLoad
from trimtab.runtime.serving.replica_orders import ReplicaOrders
from trimtab.runtime.telemetry.hub import Hub

CLUSTER = load_cluster("demo-16")
NUM = len(CLUSTER.replicas)


@pytest.fixture
def quiet() -> ClusterState:
    return Hub(layout_of(CLUSTER)).state(1.0)


def with_outstanding(state: ClusterState, outstanding: Sequence[float]) -> ClusterState:
    state.values[Node.REPLICA][:, column(Node.REPLICA, "outstanding_requests")] = outstanding
    return state


def plan(
    planner: TargetLoad, state: ClusterState, load: float, states: Sequence[str]
) -> list[tuple[str, int]]:
    wanted = with_outstanding(state, [load * planner.slots] * NUM)
    return [(str(m.kind), m.replica) for m in planner.plan(wanted, (), states)]


def test_hold_moves_nothing(quiet: ClusterState) -> None:
    assert Hold().plan(quiet, (), ["ready"] * NUM) == ()


def test_a_replica_sleeps_after_a_low_load_has_lasted(quiet: ClusterState) -> None:
    planner = TargetLoad(slots=10.0, dwell_calls=3)
    ready = ["ready"] * NUM
    moves = [plan(planner, quiet, 0.1, ready) for _ in range(3)]
    assert moves == [[], [], [("sleep", NUM - 1)]]


def test_a_high_load_wakes_a_replica_at_once(quiet: ClusterState) -> None:
    planner = TargetLoad(slots=10.0)
    states = ["ready"] * (NUM - 2) + ["asleep"] * 2
    assert plan(planner, quiet, 0.9, states) == [("wake", NUM - 2)]
    assert plan(planner, quiet, 0.9, ["ready"] * NUM) == []


def test_a_load_between_the_two_moves_nothing_and_ends_the_dwell(quiet: ClusterState) -> None:
    planner = TargetLoad(slots=10.0, dwell_calls=2)
    ready = ["ready"] * NUM
    assert plan(planner, quiet, 0.1, ready) == []
    assert plan(planner, quiet, 0.5, ready) == []
    assert plan(planner, quiet, 0.1, ready) == []
    assert plan(planner, quiet, 0.1, ready) != []


def test_nothing_goes_down_right_after_a_move(quiet: ClusterState) -> None:
    planner = TargetLoad(slots=10.0, dwell_calls=1, cooldown_calls=3)
    states = ["ready"] * (NUM - 1) + ["asleep"]
    assert plan(planner, quiet, 0.9, states) == [("wake", NUM - 1)]
    ready = ["ready"] * NUM
    assert [len(plan(planner, quiet, 0.1, ready)) for _ in range(3)] == [0, 0, 1]


def test_the_least_number_stays_ready(quiet: ClusterState) -> None:
    planner = TargetLoad(slots=10.0, dwell_calls=1, least_ready=4)
    states = ["ready"] * 4 + ["asleep"] * (NUM - 4)
    assert plan(planner, quiet, 0.0, states) == []


def test_a_fleet_with_nobody_ready_wakes_one(quiet: ClusterState) -> None:
    assert plan(TargetLoad(slots=1.0), quiet, 0.0, ["asleep"] * NUM) == [("wake", 0)]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"slots": 0.0}, "slots must be above 0, got 0.0"),
        ({"slots": 1.0, "low_frac": 0.9}, r"low_frac must be in \[0, high_frac\), got 0.9"),
        ({"slots": 1.0, "least_ready": 0}, "least_ready must be at least 1, got 0"),
    ],
)
def test_a_planner_without_sense_is_refused(changes: dict[str, float], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        TargetLoad(**changes)  # type: ignore[arg-type]


# Orders, with engines that can sleep and engines that cannot.


@dataclass
class FakeEngine:
    can_sleep: bool = True
    is_asleep: bool = False
    deeds: list[str] = field(default_factory=list)

    async def facts(self) -> None:
        self.deeds.append("facts")

    async def sleep(self) -> None:
        if not self.can_sleep:
            msg = "replica 'x' has no capability 'sleep'"
            raise EngineError(msg, missing=Capability.SLEEP)
        self.deeds.append("sleep")
        self.is_asleep = True

    async def wake(self) -> None:
        self.deeds.append("wake")
        self.is_asleep = False

    async def health(self) -> Health:
        return Health(HealthState.ASLEEP if self.is_asleep else HealthState.READY)


@dataclass
class FakeControl:
    orders: np.ndarray = field(default_factory=lambda: np.zeros(NUM, np.uint16))


@dataclass
class Depot:
    """Orders over fakes."""

    engine: FakeEngine = field(default_factory=FakeEngine)
    control: FakeControl = field(default_factory=FakeControl)
    outstanding: list[int] = field(default_factory=lambda: [0] * NUM)
    orders: ReplicaOrders = field(init=False)

    def __post_init__(self) -> None:
        replicas = [
            LiveReplica(name=r.name, engine=EngineKind.VLLM, host="127.0.0.1", port=1, model="m")
            for r in CLUSTER.replicas
        ]

        @contextlib.asynccontextmanager
        async def connect(replica: LiveReplica) -> AsyncIterator[FakeEngine]:
            yield self.engine

        self.orders = ReplicaOrders(
            replicas, self.control, lambda r: self.outstanding[r],
            connect_engine=connect,  # type: ignore[arg-type]
        )  # fmt: skip

    def states(self) -> list[str]:
        return [self.orders.state(r, is_available=True) for r in range(NUM)]


def test_a_replica_sleeps_once_its_requests_have_ended() -> None:
    depot = Depot()
    depot.outstanding[3] = 2

    async def run() -> None:
        sleeping = asyncio.create_task(depot.orders.sleep(3))
        await asyncio.sleep(0.01)
        assert depot.states()[3] == "draining"
        assert int(depot.control.orders[3]) == Mask.PLAN
        assert depot.engine.deeds == ["facts"]
        depot.outstanding[3] = 0
        await sleeping
        assert depot.states()[3] == "asleep"
        await depot.orders.wake(3)
        assert depot.states()[3] == "ready"
        assert not depot.control.orders.any()

    asyncio.run(run())


def test_who_cannot_sleep_or_does_not_drain_serves_again() -> None:
    depot = Depot(FakeEngine(can_sleep=False))

    async def run() -> None:
        with pytest.raises(EngineError, match="no capability 'sleep'"):
            await depot.orders.sleep(3)
        assert not depot.control.orders.any()
        depot.outstanding[3] = 1
        with pytest.raises(TimeoutError):
            await depot.orders.sleep(3, deadline_s=0.02)
        assert depot.states() == ["ready"] * NUM

    asyncio.run(run())


@dataclass
class Wishes:
    """A planner that wants what it is given."""

    moves: list[CapacityMove]
    seen: list[int] = field(default_factory=list)

    def plan(
        self, state: ClusterState, windows: Sequence[WindowOutcome], states: Sequence[str]
    ) -> Sequence[CapacityMove]:
        self.seen.append(len(windows))
        return self.moves


def sleeps(*replicas: int) -> list[CapacityMove]:
    return [CapacityMove(kind=MoveKind.SLEEP, replica=r) for r in replicas]


def make_loop(depot: Depot, planner: Wishes, **limits: object) -> PlanLoop:
    return PlanLoop(
        planner, CLUSTER, depot.orders, depot.states,
        limits=MoveLimits(**limits),  # type: ignore[arg-type]
    )  # fmt: skip


def test_moves_are_bounded_made_and_counted(quiet: ClusterState) -> None:
    depot = Depot()
    loop = make_loop(depot, Wishes(sleeps(0, 1, 2, 99)), moves_per_min=2)

    async def run() -> None:
        assert [m.replica for m in loop.step(quiet, 100.0)] == [0, 1]
        await loop.settle()

    asyncio.run(run())
    assert loop.num_made == {MoveKind.SLEEP: 2}
    assert loop.num_refused == {"too_many_moves": 1, "unknown_replica": 1}
    assert depot.states()[:3] == ["asleep", "asleep", "ready"]


def test_an_engine_that_cannot_sleep_rests_and_is_back_at_once(quiet: ClusterState) -> None:
    depot = Depot(FakeEngine(can_sleep=False))
    planner = Wishes(sleeps(5))
    loop = make_loop(depot, planner, dwell_s=10.0)

    async def run() -> None:
        loop.step(quiet, 100.0)
        await loop.settle()
        assert depot.states()[5] == "asleep"
        assert int(depot.control.orders[5]) == Mask.PLAN
        planner.moves = [CapacityMove(kind=MoveKind.WAKE, replica=5)]
        assert loop.step(quiet, 105.0) == ()
        loop.step(quiet, 160.0)
        await loop.settle()
        assert depot.states()[5] == "ready"

    asyncio.run(run())
    assert loop.num_made == {MoveKind.SLEEP: 1, MoveKind.WAKE: 1}
    assert loop.num_refused == {"dwell": 1}


def test_what_a_gateway_cannot_do_is_refused_and_counted(quiet: ClusterState) -> None:
    depot = Depot()
    loop = make_loop(depot, Wishes([CapacityMove(kind=MoveKind.STOP, replica=0)]))

    async def run() -> None:
        loop.step(quiet, 0.0)
        await loop.settle()

    asyncio.run(run())
    assert loop.num_refused == {"not_possible": 1}
    assert not loop.num_made
