"""A fleet in the simulator, behind the same protocol as a live one.

Does not know: policies, rewards or Gymnasium.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np

from . import emergency_orders, fleet_orders
from .capacity import CapacityMove, MoveKind
from .cluster import ClusterSpec
from .emergency import Emergency, EmergencyAction
from .energy import cap_fault
from .fleet import WindowOutcome
from .guard import UNGUARDED, Guard
from .knobs import Knobs
from .kpis import Kpis, Production, compute_kpis, credit_by_window, production
from .regret import Regret
from .restrictions import ReplicaLimits
from .simulator.cluster_setup import cap_w
from .simulator.faults import TroubleRecord, draw_trouble, places_of
from .simulator.fleet_loop import num_open, refresh_view
from .simulator.guardrails import set_bias, set_limits
from .simulator.layout import ASLEEP, READY, STOPPED, SimulationArrays
from .simulator.orders import (
    order_pause,
    order_start,
)
from .simulator.setup import FleetConfig, allocate
from .simulator.shadow import set_shadow, take_regret
from .simulator.side_by_side import drain_many, over_parts, run_many
from .simulator.snapshot import Bank, Snapshot, Sync, stack_records
from .simulator.state_reader import StateBatch, StateReader, Window, read_many
from .simulator.trouble import set_power_cap
from .simulator.window import (
    ARRIVED_WEIGHT,
    CREDIT,
    NUM_FAILED,
    NUM_FINISHED,
    NUM_SHED,
    window_totals,
)
from .simulator.workload import Workload
from .state.cluster_state import ClusterState

# Longest time that a run may go on after the last arrival, to let open requests finish.
DRAIN_LIMIT_S = 600.0
_DRAIN_STEP_S = 5.0
_NO_STATE = "the fleet has no state yet; call reset(seed=...) first"


class SimulatedFleet:
    """Replicas of a cluster serving a workload, at simulated time.

    `reset` begins the workload anew. A guard, if there is one, decides which knobs are let through
    and acts while the fleet runs. At any moment a fleet can be copied with `branch`, or its
    state taken with `snapshot` and given back, to it or to another, with `restore`.
    """

    def __init__(
        self,
        cluster: ClusterSpec,
        workload: Workload,
        config: FleetConfig | None = None,
        *,
        guard: Guard | None = None,
    ) -> None:
        self._cluster = cluster
        self._guard = guard
        self._workload = workload
        self._config = config or FleetConfig()
        self._reader = StateReader(cluster)
        self._bank: Bank | None = None
        self._sync: Sync | None = None
        self._made: Production | None = None
        self._seed = 0

    @property
    def cluster(self) -> ClusterSpec:
        """What the fleet is made of."""
        return self._cluster

    @property
    def workload(self) -> Workload:
        """What it serves."""
        return self._workload

    @property
    def config(self) -> FleetConfig:
        """How it behaves beyond its cluster."""
        return self._config

    @property
    def arrays(self) -> SimulationArrays:
        """The simulation's memory.

        Raises:
            RuntimeError: `reset` was not called.
        """
        return self._state_bank.arrays

    @property
    def _state_bank(self) -> Bank:
        if self._bank is None:
            raise RuntimeError(_NO_STATE)
        return self._bank

    @property
    def handle(self) -> np.ndarray:
        """Addresses of the arrays, for compiled functions; HANDLE_DTYPE [1]."""
        return self._state_bank.handle

    @property
    def now_s(self) -> float:
        """The fleet's clock."""
        return float(self.arrays.fleet[0]["now_s"])

    @property
    def num_open(self) -> int:
        """Requests that are waiting or running."""
        return int(num_open(self.handle))

    @property
    def requests(self) -> np.ndarray:
        """The requests that have arrived, REQUEST_DTYPE [arrived]; do not change."""
        return self.arrays.requests[: self.arrays.fleet[0]["next_arrival"]]

    @property
    def labels(self) -> np.ndarray:
        """What candidates were worth by rollouts, if that is noted; LABEL_DTYPE [labels]."""
        return self.arrays.labels[: self.arrays.lookahead[0]["num_labels"]]

    def reset(self, *, seed: int, knobs: Knobs | None = None) -> ClusterState:
        """Begin the workload anew; the seed sets faults, lost scrapes and random choices."""
        arrays = allocate(
            self._cluster,
            self._workload,
            self._config,
            knobs=knobs or Knobs(),
            seed=seed,
            horizon_s=self._horizon_s,
        )
        self._bank, self._sync = Bank(arrays), None
        self._reader.begin(arrays)
        self._seed = seed
        self._made = None
        if self._guard is not None:
            self._set_knobs(self._guard.begin(self, knobs or Knobs()))
        return self.state()

    def apply(self, knobs: Knobs) -> Knobs:
        """Set the knobs from here on, or what the guard lets through; return those in force."""
        admitted = self._guard.admit(self, knobs) if self._guard is not None else knobs
        self._set_knobs(admitted)
        return admitted

    def _set_knobs(self, knobs: Knobs) -> None:
        arrays = self.arrays
        arrays.knobs[:] = knobs.record()
        arrays.knob_bias[:] = 0.0
        arrays.knob_bias[: knobs.replica_bias.size] = knobs.replica_bias
        set_bias(arrays)
        refresh_view(self.handle)

    def limit(self, limits: ReplicaLimits) -> None:
        """Let each replica have no more than this from here on.

        Raises:
            ValueError: the limits are of another number of replicas.
        """
        set_limits(self.arrays, limits)

    def set_shadow(self, knobs: Knobs | None, *, every: int = 8) -> None:
        """Place every n-th request on paper by other knobs too, from here on; None: no more.

        What the fleet does stays the same, bit for bit. Take the regret before the knobs change:
        it is of all since it was last taken.

        Raises:
            ValueError: `every` is below 1.
        """
        set_shadow(self.arrays, knobs, every)

    def take_regret(self) -> Regret:
        """Return how much better the shadow is estimated to do, since it was last taken."""
        return take_regret(self.arrays)

    def start(self, replica: int) -> None:
        """Begin to start a stopped replica; it serves when its weights and engine are ready.

        Raises:
            ValueError: there is no such replica, or it is not stopped.
        """
        fleet_orders.check_state(self, replica, "started", "stopped", STOPPED)
        order_start(self.handle, replica)

    def wake(self, replica: int) -> None:
        """Begin to wake a replica that is asleep.

        Raises:
            ValueError: there is no such replica, or it is not asleep.
        """
        fleet_orders.check_state(self, replica, "woken", "asleep", ASLEEP)
        order_start(self.handle, replica)

    def stop(self, replica: int) -> None:
        """Let a replica finish what it has, and then switch its GPUs off.

        Raises:
            ValueError: there is no such replica, or it is not ready.
        """
        fleet_orders.check_state(self, replica, "stopped", "ready", READY)
        order_pause(self.handle, replica, STOPPED)

    def sleep(self, replica: int) -> None:
        """Let a replica finish what it has, and then keep its weights in host memory only.

        Raises:
            ValueError: there is no such replica, or it is not ready.
        """
        fleet_orders.check_state(self, replica, "put to sleep", "ready", READY)
        order_pause(self.handle, replica, ASLEEP)

    def move(self, move: CapacityMove) -> None:
        """Make a move of capacity.

        Raises:
            ValueError: the replica cannot make it in its present state, or not with so many watts.
        """
        if move.kind is MoveKind.POWER_CAP:
            self.set_power_cap(move.replica, move.watts)
            return
        deeds = {
            MoveKind.START: self.start,
            MoveKind.STOP: self.stop,
            MoveKind.SLEEP: self.sleep,
            MoveKind.WAKE: self.wake,
        }
        deeds[move.kind](move.replica)

    def migrate(self, request: int, to_replica: int) -> None:
        """Move a decoding request with its KV to another replica, where it goes on.

        It leaves at the end of the iteration in progress and stands still while its KV moves.

        Raises:
            ValueError: the request is not decoding, or the replica cannot take it.
        """
        fleet_orders.migrate(self, request, to_replica)

    def can(self, kind: Emergency, replica: int | None = None) -> bool:
        """Whether the fleet, or a replica's engine, can do an emergency action."""
        return emergency_orders.can(self, kind, replica)

    def act(self, action: EmergencyAction) -> int:
        """Do an emergency action; return how many requests or replicas it touched.

        Raises:
            ValueError: there is no such replica.
        """
        return emergency_orders.act(self, action)

    def undo(self, kind: Emergency, replica: int | None = None) -> None:
        """Take an emergency action back.

        Raises:
            ValueError: there is no such replica.
        """
        emergency_orders.undo(self, kind, replica)

    def degrade_link(self, name: str, factor: float) -> None:
        """Set a link's bandwidth to a share of what it is when whole, from here on.

        `topology.links` names the links of a cluster.

        Raises:
            ValueError: there is no such link, or the share is not in [0, 1].
        """
        fleet_orders.degrade_link(self, name, factor)

    def advance(self, span_s: float) -> WindowOutcome:
        """Run the fleet for some time.

        Raises:
            ValueError: the span is not above 0.
        """
        return advance_all([self], span_s)[0]

    def run_until(self, moment_s: float) -> None:
        """Run the fleet up to a moment, and no more: no window begins or ends.

        Raises:
            ValueError: the moment has passed.
        """
        if not moment_s >= self.now_s:
            msg = f"moment_s must not be before now ({self.now_s}), got {moment_s}"
            raise ValueError(msg)
        _run_all([self], np.array([moment_s]))

    def _begin_window(self) -> tuple[float, int, float]:
        """Return the moment, the next arrival and the energy used, for `_end_window`."""
        arrays = self.arrays
        self._reader.begin_window(arrays, self.handle)
        first = int(arrays.fleet[0]["next_arrival"])
        return self.now_s, first, float(arrays.replicas["energy_j"].sum())

    def _end_window(self, start_s: float, first: int, energy_j: float) -> WindowOutcome:
        num_settled = self._reader.window.num_settled
        totals, tenants, num_settled = window_totals(self.handle, start_s, first, num_settled)
        counts = (tenants, num_settled)
        self._reader.end_window(self.arrays, self.handle, (start_s, first), counts)
        return WindowOutcome(
            start_s=start_s,
            end_s=self.now_s,
            num_arrived=int(self.arrays.fleet[0]["next_arrival"]) - first,
            num_finished=int(totals[NUM_FINISHED]),
            num_shed=int(totals[NUM_SHED]),
            num_failed=int(totals[NUM_FAILED]),
            arrived_weight=float(totals[ARRIVED_WEIGHT]),
            credit=float(totals[CREDIT]),
            energy_j=float(self.arrays.replicas["energy_j"].sum()) - energy_j,
            guard=self._guard.report() if self._guard is not None else UNGUARDED,
        )

    def drain(self) -> None:
        """Run on, with whatever still arrives, until nothing is open or the limit is reached.

        In a closed loop nothing may end for as long as the limit before it is given up.
        """
        if self._config.closed_loop_requests > 0:
            self._run_until_all_arrived()
        drain_all([self])

    @property
    def _horizon_s(self) -> float:
        """How far trouble is drawn."""
        return self._workload.span_s + DRAIN_LIMIT_S

    def _run_until_all_arrived(self) -> None:
        """Run a closed loop until its last request was sent, or none was for the drain limit."""
        sent, sent_at_s = self.requests.size, self.now_s
        while sent < self._workload.requests.size and self.now_s < sent_at_s + DRAIN_LIMIT_S:
            self.run_until(self.now_s + _DRAIN_STEP_S)
            if self.requests.size > sent:
                sent, sent_at_s = self.requests.size, self.now_s

    @property
    def _end_s(self) -> float:
        """A moment just after the last arrival; in a closed loop, the first stop after it."""
        if self._config.closed_loop_requests > 0:
            has_all = self.requests.size == self._workload.requests.size
            return self.now_s if has_all else np.inf
        return float(np.nextafter(self._workload.span_s, np.inf))

    def state(self) -> ClusterState:
        """Return what a scheduler can see at this moment."""
        return self._reader.read(self.arrays, self.handle)

    def credit_by_window(self, window_s: float, num_windows: int) -> np.ndarray:
        """Return the weight of met requests by the window in which they arrived."""
        return credit_by_window(self.requests, window_s, num_windows)

    def kpis(self) -> Kpis:
        """Return the indicators of everything that has arrived."""
        return compute_kpis(self.requests, self.arrays.replicas, self._made)

    def trouble(self) -> list[TroubleRecord]:
        """Return what has gone wrong so far, in order of time; schedulers never see it.

        Wandering slow-downs are in `arrays.slowdowns` only: they never begin or end.
        """
        places, now_s = places_of(self._cluster), self.now_s
        _, records = draw_trouble(self._config.faults, places, self._horizon_s, self._seed)
        return [record for record in records if record.at_s < now_s]

    def set_power_cap(self, replica: int, watts: float | None) -> None:
        """Cap the power of each GPU of a replica from here on; None lifts the cap.

        Raises:
            ValueError: there is no such replica, or its GPUs cannot be capped so.
        """
        replicas = self._cluster.replicas
        if not 0 <= replica < len(replicas):
            msg = f"replica must be in [0, {len(replicas) - 1}], got {replica}"
            raise ValueError(msg)
        spec = replicas[replica]
        if watts is not None and cap_fault(self._cluster.gpu_of(spec), watts):
            raise ValueError(cap_fault(self._cluster.gpu_of(spec), watts))
        set_power_cap(self.handle, replica, cap_w(self._cluster, spec, watts))

    def snapshot(self, into: Snapshot | None = None) -> Snapshot:
        """Return the fleet's state, independent of what happens to the fleet afterwards.

        Writing it `into` the last snapshot of the same fleet takes microseconds; what that one
        held is lost.

        Raises:
            ValueError: `into` is of another cluster, workload or config.
        """
        bank = self._state_bank
        if into is None:
            into = Snapshot(bank, self._origin)
        into.check_origin(self._origin)
        self._sync = into.take(bank, self._sync)
        into.extra = (self._reader.window, self._made, self._seed)
        return into

    def restore(self, snapshot: Snapshot) -> None:
        """Become what a fleet of the same cluster, workload and config was, bit for bit.

        To do so over and over with the last snapshot of another fleet takes microseconds.

        Raises:
            ValueError: the snapshot is of another cluster, workload or config.
        """
        snapshot.check_origin(self._origin)
        self._bank, self._sync = snapshot.put(self._bank, self._sync)
        extra = cast("tuple[Window, Production | None, int]", snapshot.extra)
        self._reader.window, self._made, self._seed = extra

    @property
    def _origin(self) -> dict[str, object]:
        return {
            "cluster": self._cluster,
            "workload": self._workload,
            "config": self._config,
        }

    def branch(self) -> "SimulatedFleet":
        """Return an independent copy of the fleet as it is."""
        copy = SimulatedFleet(self._cluster, self._workload, self._config)
        copy._bank = self._state_bank.duplicate()
        copy._reader.window = self._reader.window
        copy._made = self._made
        copy._seed = self._seed
        return copy


class Workers:
    """Threads that advance fleets side by side."""

    def __init__(self, num_workers: int | None = None) -> None:
        self.num_workers = num_workers or os.cpu_count() or 1
        self.pool = ThreadPoolExecutor(self.num_workers) if self.num_workers > 1 else None

    def close(self) -> None:
        """Stop the threads."""
        if self.pool is not None:
            self.pool.shutdown()


def _handles(fleets: Sequence[SimulatedFleet]) -> np.ndarray:
    return (
        fleets[0].handle if len(fleets) == 1 else stack_records([f.handle for f in fleets]).ravel()
    )


def _run_to(
    fleets: Sequence[SimulatedFleet], until_s: np.ndarray, workers: Workers | None = None
) -> None:
    """Run fleets up to moments; guarded ones one by one, the others in one call."""
    pool, num_workers = (workers.pool, workers.num_workers) if workers else (None, 1)
    is_guarded = np.array([fleet._guard is not None for fleet in fleets])
    if not is_guarded.all():
        plain = [fleet for fleet in fleets if fleet._guard is None]
        over_parts(run_many, _handles(plain), until_s[~is_guarded], pool, num_workers)
    guarded = [
        (fleet._guard, fleet, float(moment_s))
        for fleet, moment_s in zip(fleets, until_s, strict=True)
        if fleet._guard is not None
    ]
    if pool is None or len(guarded) < 2:
        for guard, fleet, moment_s in guarded:
            guard.run(fleet, moment_s)
    else:
        for done in [pool.submit(guard.run, fleet, at_s) for guard, fleet, at_s in guarded]:
            done.result()


def _run_all(
    fleets: Sequence[SimulatedFleet], until_s: np.ndarray, workers: Workers | None = None
) -> None:
    """Run fleets up to moments, and take stock of what each made at its last arrival."""
    ending = [
        fleet
        for fleet, moment_s in zip(fleets, until_s, strict=True)
        if fleet._made is None and moment_s >= fleet._end_s
    ]
    if ending:
        _run_to(ending, np.array([fleet._end_s for fleet in ending]), workers)
        for fleet in ending:
            fleet._made = production(fleet.arrays.replicas)
    _run_to(fleets, until_s, workers)


def advance_all(
    fleets: Sequence[SimulatedFleet], span_s: float, workers: Workers | None = None
) -> list[WindowOutcome]:
    """Run fleets for some time, all in one call; the results are those of one after the other.

    Raises:
        ValueError: the span is not above 0.
    """
    if not span_s > 0:
        msg = f"span_s must be above 0, got {span_s}"
        raise ValueError(msg)
    starts = [fleet._begin_window() for fleet in fleets]
    _run_all(fleets, np.array([start[0] for start in starts]) + span_s, workers)
    return [fleet._end_window(*start) for fleet, start in zip(fleets, starts, strict=True)]


def states_of(fleets: Sequence[SimulatedFleet]) -> StateBatch:
    """Return what a scheduler can see of fleets of one cluster at this moment."""
    return read_many([fleet._reader for fleet in fleets], [fleet.arrays for fleet in fleets])


def drain_all(fleets: Sequence[SimulatedFleet], workers: Workers | None = None) -> None:
    """Run fleets on, with whatever still arrives, until nothing is open or the limit is reached."""
    pool, num_workers = (workers.pool, workers.num_workers) if workers else (None, 1)
    ends_s = np.array([max(fleet.now_s, fleet._end_s) for fleet in fleets])
    _run_all(fleets, ends_s, workers)
    for fleet in fleets:
        emergency_orders.thaw(fleet)

    def drain(handles: np.ndarray, deadline_s: np.ndarray) -> None:
        drain_many(handles, deadline_s, _DRAIN_STEP_S)

    plain = [fleet._guard is None for fleet in fleets]
    if any(plain):
        handles = _handles([fleet for fleet in fleets if fleet._guard is None])
        over_parts(drain, handles, ends_s[plain] + DRAIN_LIMIT_S, pool, num_workers)
    # A guard goes on acting while what is open comes to its end.
    left = [(f, end_s) for f, end_s in zip(fleets, ends_s, strict=True) if f._guard is not None]
    while left := [(f, end) for f, end in left if f.num_open and f.now_s < end + DRAIN_LIMIT_S]:
        moments_s = np.array([fleet.now_s + _DRAIN_STEP_S for fleet, _ in left])
        _run_to([fleet for fleet, _ in left], moments_s, workers)


def run_workload(
    cluster: ClusterSpec,
    workload: Workload,
    knobs: Knobs,
    *,
    config: FleetConfig | None = None,
    seed: int = 0,
) -> SimulatedFleet:
    """Run a whole workload under constant knobs and return the fleet at its end."""
    fleet = SimulatedFleet(cluster, workload, config)
    fleet.reset(seed=seed, knobs=knobs)
    fleet.drain()
    return fleet
