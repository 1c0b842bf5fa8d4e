"""A fleet in the simulator, behind the same protocol as a live one.

Does not know: policies, rewards or Gymnasium.
"""

import numpy as np

from .cluster import ClusterSpec
from .fleet import WindowOutcome
from .knobs import Knobs
from .kpis import Kpis, Production, compute_kpis, credit_by_window, is_met, production
from .simulator.fleet_loop import num_open, refresh_view, run_until
from .simulator.layout import FAILED, FINISHED, SHED, SimulationArrays, copy_arrays
from .simulator.memory import HANDLE_DTYPE, handle
from .simulator.setup import FleetConfig, allocate, server_indices
from .simulator.state_reader import StateReader
from .simulator.workload import Workload
from .state import ClusterState

# Longest time that a run may go on after the last arrival, to let open requests finish.
DRAIN_LIMIT_S = 600.0
_DRAIN_STEP_S = 5.0
_NO_STATE = "the fleet has no state yet; call reset(seed=...) first"


class SimulatedFleet:
    """Replicas of a cluster serving a workload, at simulated time.

    `reset` begins the workload anew; a fleet can be copied at any moment with `branch`.
    """

    def __init__(
        self, cluster: ClusterSpec, workload: Workload, config: FleetConfig | None = None
    ) -> None:
        self._cluster = cluster
        self._workload = workload
        self._config = config or FleetConfig()
        self._servers = server_indices(cluster)
        self._reader = StateReader(cluster, self._servers)
        self._arrays: SimulationArrays | None = None
        self._handle = np.zeros(1, dtype=HANDLE_DTYPE)
        self._made: Production | None = None

    @property
    def cluster(self) -> ClusterSpec:
        """What the fleet is made of."""
        return self._cluster

    @property
    def workload(self) -> Workload:
        """What it serves."""
        return self._workload

    @property
    def arrays(self) -> SimulationArrays:
        """The simulation's memory.

        Raises:
            RuntimeError: `reset` was not called.
        """
        if self._arrays is None:
            raise RuntimeError(_NO_STATE)
        return self._arrays

    @property
    def _sim(self) -> np.ndarray:
        """The handle of the arrays, for compiled functions."""
        if self._arrays is None:
            raise RuntimeError(_NO_STATE)
        return self._handle

    @property
    def now_s(self) -> float:
        """The fleet's clock."""
        return float(self.arrays.fleet[0]["now_s"])

    @property
    def num_open(self) -> int:
        """Requests that are waiting or running."""
        return int(num_open(self._sim))

    @property
    def requests(self) -> np.ndarray:
        """The requests that have arrived, REQUEST_DTYPE [arrived]; do not change."""
        return self.arrays.requests[: self.arrays.fleet[0]["next_arrival"]]

    def reset(self, *, seed: int, knobs: Knobs | None = None) -> ClusterState:
        """Begin the workload anew; the seed sets faults, lost scrapes and random choices."""
        self._arrays = allocate(
            self._cluster,
            self._workload,
            self._config,
            knobs=knobs or Knobs(),
            seed=seed,
            horizon_s=self._workload.span_s + DRAIN_LIMIT_S,
        )
        self._handle = handle(self._arrays)
        self._reader.begin(self._arrays)
        self._made = None
        return self.state()

    def apply(self, knobs: Knobs) -> None:
        """Set the knobs from here on."""
        arrays = self.arrays
        arrays.knobs[:] = knobs.record()
        arrays.bias[:] = 0.0
        arrays.bias[: knobs.replica_bias.size] = knobs.replica_bias
        refresh_view(self._sim)

    def advance(self, span_s: float) -> WindowOutcome:
        """Run the fleet for some time.

        Raises:
            ValueError: the span is not above 0.
        """
        if not span_s > 0:
            msg = f"span_s must be above 0, got {span_s}"
            raise ValueError(msg)
        arrays, start_s = self.arrays, self.now_s
        first = int(arrays.fleet[0]["next_arrival"])
        energy_j = float(arrays.replicas["energy_j"].sum())
        self._run_until(start_s + span_s)
        self._reader.end_window(arrays, start_s, first)
        return self._outcome(start_s, first, energy_j)

    def _outcome(self, start_s: float, first: int, energy_j: float) -> WindowOutcome:
        arrived = self.requests
        is_ended = arrived["finish_s"] <= self.now_s
        # A refusal at the very start of the window belongs to it: its arrival does.
        is_ended[:first] &= arrived["finish_s"][:first] > start_s
        ended = arrived[is_ended]
        counts = {status: int((ended["status"] == status).sum()) for status in
                  (FINISHED, SHED, FAILED)}  # fmt: skip
        return WindowOutcome(
            start_s=start_s,
            end_s=self.now_s,
            num_arrived=arrived.size - first,
            num_finished=counts[FINISHED],
            num_shed=counts[SHED],
            num_failed=counts[FAILED],
            arrived_weight=float(arrived["weight"][first:].sum()),
            credit=float(ended["weight"][is_met(ended)].sum()),
            energy_j=float(self.arrays.replicas["energy_j"].sum()) - energy_j,
        )

    def drain(self) -> None:
        """Run on, with whatever still arrives, until nothing is open or the limit is reached.

        In a closed loop nothing may end for as long as the limit before it is given up.
        """
        if self._config.closed_loop_requests > 0:
            self._run_until_all_arrived()
        else:
            self._run_until(max(self.now_s, self._end_s))
        deadline_s = self.now_s + DRAIN_LIMIT_S
        while self.num_open and self.now_s < deadline_s:
            self._run_until(self.now_s + _DRAIN_STEP_S)

    def _run_until_all_arrived(self) -> None:
        """Run a closed loop until its last request was sent, or none was for the drain limit."""
        sent, sent_at_s = self.requests.size, self.now_s
        while sent < self._workload.requests.size and self.now_s < sent_at_s + DRAIN_LIMIT_S:
            self._run_until(self.now_s + _DRAIN_STEP_S)
            if self.requests.size > sent:
                sent, sent_at_s = self.requests.size, self.now_s

    @property
    def _end_s(self) -> float:
        """A moment just after the last arrival; in a closed loop, the first stop after it."""
        if self._config.closed_loop_requests > 0:
            has_all = self.requests.size == self._workload.requests.size
            return self.now_s if has_all else np.inf
        return float(np.nextafter(self._workload.span_s, np.inf))

    def _run_until(self, until_s: float) -> None:
        """Run, and take stock of what was made at the last arrival, on the way."""
        if self._made is None and until_s >= self._end_s:
            run_until(self._sim, self._end_s)
            self._made = production(self.arrays.replicas)
        run_until(self._sim, until_s)

    def state(self) -> ClusterState:
        """Return what a scheduler can see at this moment."""
        return self._reader.read(self.arrays)

    def credit_by_window(self, window_s: float, num_windows: int) -> np.ndarray:
        """Return the weight of met requests by the window in which they arrived."""
        return credit_by_window(self.requests, window_s, num_windows)

    def kpis(self) -> Kpis:
        """Return the indicators of everything that has arrived."""
        return compute_kpis(self.requests, self.arrays.replicas, self._made)

    def branch(self) -> "SimulatedFleet":
        """Return an independent copy of the fleet as it is."""
        copy = SimulatedFleet(self._cluster, self._workload, self._config)
        copy._arrays = copy_arrays(self.arrays)
        copy._handle = handle(copy._arrays)
        copy._made = self._made
        copy._reader = self._reader.branch()
        return copy


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
