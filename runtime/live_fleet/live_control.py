"""Keeps a live gateway within its limits: shield, health of the replicas, pages, windows.

Called from the gateway's own loop: `tick` every 10 ms, `look` every 100 ms. It does no I/O.

Does not know: policies, or how pages reach the hub.
"""

import logging
from collections.abc import Sequence

import numpy as np

from ...agents.shield.alarm import Alarm
from ...agents.shield.shield import Shield, ShieldConfig
from ...env.emergency import Emergency, EmergencyAction
from ...env.fleet import WindowOutcome
from ...env.masks import Mask
from ...env.restrictions import ReplicaLimits
from ...env.state.cluster_state import ClusterState
from ...env.state.feature import Node
from ...env.state.registry import column
from ..dispatcher.live_dispatcher import LiveDispatcher
from ..dispatcher.replica_page import ReplicaPage
from ..gateway.gateway import Gateway
from ..observer.observer import page_period_s
from ..telemetry.hub import Hub
from .live_signals import read_signals
from .live_state import PAGE_NAMES, LiveState

_LOG = logging.getLogger(__name__)

# A replica with requests under way that has sent no byte for so long, and whose page did not come
# either while others' did, stands still, s.
QUIET_S = 0.5
# The same on top for each period of the pages: two may be missed.
_MISSED_PAGES = 2
# After so long, answers that have begun there are ended, s.
LOST_S = 5.0
# A replica that could not be reached is tried again after this, if nobody says that it is back, s.
RETRY_S = 1.0
# If more of the fleet is silent, it is the metrics that are out, and not the replicas.
_MAX_QUIET_FRAC = 0.5
_PAGE_COLUMNS = [column(Node.REPLICA, name) for name in PAGE_NAMES]
_AGE_COLUMN = column(Node.REPLICA, "state_age_s")


class LiveControl:
    """The control side of one gateway. An `EmergencyFleet` as well."""

    def __init__(
        self, gateway: Gateway, dispatcher: LiveDispatcher, hub: Hub, shield: ShieldConfig
    ) -> None:
        self.gateway, self.dispatcher, self.hub = gateway, dispatcher, hub
        self.shield = Shield(shield, dispatcher.cluster)
        self.live_state = LiveState(hub, dispatcher)
        num_replicas = dispatcher.views.size
        self.page_at_s = np.full(num_replicas, np.nan)
        """When each replica's newest page was read; NaN for never."""
        self.is_quiet = np.zeros(num_replicas, np.bool_)
        """Replicas that fell silent and have not shown a new page since."""
        self._is_any_quiet = False
        self._quiet_at_s = np.full(num_replicas, np.nan)
        self._is_cut = np.zeros(num_replicas, np.bool_)
        self._patience_s = QUIET_S + _MISSED_PAGES * page_period_s(num_replicas)
        self.orders = np.zeros(num_replicas, np.uint16)
        """Masks that an operator or a planner has set; [R]."""
        self.num_evicted = 0
        """Requests that were moved from replicas that fell silent."""
        self._applied: ReplicaLimits | None = None
        self._settled: tuple[ReplicaLimits, bytes, np.ndarray] | None = None
        self._window_at_s: float | None = None
        self._window_counts: tuple[float, ...] = ()

    def begin(self, now_s: float) -> None:
        """Take all replicas for healthy until something says otherwise."""
        for replica in range(self.dispatcher.views.size):
            self.dispatcher.set_available(replica, True, now_s)
        self._window_at_s, self._window_counts = now_s, self._counts()
        self.live_state.end_window(now_s)

    # Every 10 ms.

    def tick(self, now_s: float) -> None:
        """Look at the signals, act, and set the limits of every replica."""
        self.dispatcher.settle(now_s)
        self._check_reach(now_s)
        shield = self.shield
        is_any_still = read_signals(
            self.dispatcher, self.page_at_s, (now_s, self._patience_s),
            shield.fleet_signals, shield.signals,
        )  # fmt: skip
        shield.tick(self)
        if is_any_still or self._is_any_quiet or shield.is_any_silent:
            self._check_silence(now_s)
        self._set_limits()

    def _check_reach(self, now_s: float) -> None:
        """Send nothing to replicas that cannot be reached, until they can."""
        for replica, pool in enumerate(self.gateway.pools):
            refused_at_s = pool.refused_at_s
            if refused_at_s != refused_at_s:
                continue
            is_back = self.page_at_s[replica] > refused_at_s
            is_up = bool(is_back or now_s - refused_at_s > RETRY_S)
            if is_up:
                pool.refused_at_s = float("nan")
            self.dispatcher.set_available(replica, is_up, now_s)

    def _check_silence(self, now_s: float) -> None:
        """Move requests away from replicas that stand still, until they give a sign of life.

        That is a new page, or a byte. Where no pages come at all, nobody can be told to be back:
        then a replica is tried again after a while.
        """
        detector = self.shield.controller.detector
        has_page = now_s - self.page_at_s < self._patience_s
        is_silent = detector.is_silent != 0
        is_back = has_page | (self.dispatcher.token_at_s > self._quiet_at_s)
        if has_page.any():
            # Pages come, so one that does not come means something.
            is_silent |= self._stands_still(now_s)
        else:
            is_back |= now_s - self._quiet_at_s > LOST_S
        is_quiet = (self.is_quiet | is_silent) & ~is_back
        if is_quiet.sum() > _MAX_QUIET_FRAC * is_quiet.size:
            is_quiet[:] = False
        for replica in np.flatnonzero(is_quiet & ~self.is_quiet).tolist():
            self._begin_silence(replica, now_s)
        for replica in np.flatnonzero(self.is_quiet & ~is_quiet).tolist():
            self._quiet_at_s[replica] = np.nan
            _LOG.warning("%s is let back", self._name(replica))
        is_lost = is_quiet & ~self._is_cut & (now_s - self._quiet_at_s > LOST_S)
        for replica in np.flatnonzero(is_lost).tolist():
            self._is_cut[replica] = True
            lost = self.gateway.fail(replica, "its replica gave no sign of life")
            _LOG.warning("%s stays silent; %d answers were cut", self._name(replica), lost)
        self.is_quiet = is_quiet
        self._is_any_quiet = bool(is_quiet.any())

    def _begin_silence(self, replica: int, now_s: float) -> None:
        self._quiet_at_s[replica], self._is_cut[replica] = now_s, False
        moved = self.gateway.evict(replica, "gave no sign of life")
        self.num_evicted += moved
        _LOG.warning("%s gave no sign of life; %d requests moved", self._name(replica), moved)

    def _stands_still(self, now_s: float) -> np.ndarray:
        """Return which replicas have requests, and sent neither byte nor page for too long."""
        views = self.dispatcher.views
        heard_at_s = np.fmax(self.dispatcher.token_at_s, self.page_at_s)
        is_asked = (views["outstanding_requests"] > 0) & (views["is_available"] != 0)
        return np.asarray(is_asked & (now_s - heard_at_s > self._patience_s))

    def _name(self, replica: int) -> str:
        return f"replica '{self.dispatcher.cluster.replicas[replica].name}'"

    def _set_limits(self) -> None:
        limits, orders, settled = self.shield.limits, self.orders.tobytes(), self._settled
        if settled is not None and (
            settled[0] is limits and settled[1] == orders and settled[2] is self.is_quiet
        ):
            return
        self._settled = limits, orders, self.is_quiet
        masks = limits.masks | self.orders
        masks[self.is_quiet] |= np.uint16(Mask.UNHEALTHY)
        applied = self._applied
        if (
            applied is not None
            and np.array_equal(applied.masks, masks)
            and applied.max_outstanding is limits.max_outstanding
            and applied.penalties is limits.penalties
        ):
            return
        self._applied = ReplicaLimits(
            masks=masks, max_outstanding=limits.max_outstanding, penalties=limits.penalties
        )
        self.dispatcher.set_limits(self._applied)

    # Every 100 ms.

    def look(self, now_s: float) -> Sequence[Alarm]:
        """Take what the hub has learned of the engines; let the breakers look; return alarms."""
        state = self.hub.state(now_s)
        values, is_valid = state.values[Node.REPLICA], state.is_valid[Node.REPLICA]
        # The page's own age when it was sampled, and the time since then.
        ages_s = values[:, _AGE_COLUMN] + state.age_s[Node.REPLICA]
        read_at_s = now_s - ages_s
        for replica in np.flatnonzero(np.isfinite(ages_s)):
            before_s = self.page_at_s[replica]
            # Moments of the same page differ a little, as clocks do.
            if before_s == before_s and read_at_s[replica] < before_s + 0.02:
                continue
            self.page_at_s[replica] = read_at_s[replica]
            row = values[replica, _PAGE_COLUMNS]
            known = is_valid[replica, _PAGE_COLUMNS]
            self.live_state.seen[replica] |= known
            numbers = [float(x) if ok else None for x, ok in zip(row, known, strict=True)]
            page = ReplicaPage(**dict(zip(PAGE_NAMES, numbers, strict=True)))
            self.dispatcher.put_page(int(replica), page, float(read_at_s[replica]))
        if self.shield.config.breakers:
            return self.shield.look(self.state(now_s))
        self.shield.age(now_s)
        return ()

    def state(self, now_s: float) -> ClusterState:
        """Return the state of the fleet."""
        return self.live_state.read(now_s)

    # Every window.

    def take_window(self, now_s: float) -> WindowOutcome:
        """Return what happened since the last call, or since the begin."""
        start_s = self._window_at_s if self._window_at_s is not None else now_s
        before, counts = self._window_counts, self._counts()
        self._window_at_s, self._window_counts = now_s, counts
        self.live_state.end_window(now_s)
        arrived, finished, shed, failed, weight, credit = (
            after - first for after, first in zip(counts, before or counts, strict=True)
        )
        return WindowOutcome(
            start_s=start_s,
            end_s=now_s,
            num_arrived=int(arrived),
            num_finished=int(finished),
            num_shed=int(shed),
            num_failed=int(failed),
            arrived_weight=weight,
            credit=credit,
            energy_j=float("nan"),
        )

    def _counts(self) -> tuple[float, ...]:
        totals = self.dispatcher.totals
        return (
            totals.num_arrived, totals.num_finished, totals.num_shed, totals.num_failed,
            totals.arrived_weight, totals.credit,
        )  # fmt: skip

    # Emergency actions.

    def can(self, kind: Emergency, replica: int | None) -> bool:
        """Whether a gateway can do this: what happens inside an engine it cannot."""
        if kind is Emergency.SPILL_SHORT:
            return any(spec.is_spill for spec in self.dispatcher.cluster.replicas)
        return kind is Emergency.SHED

    def act(self, action: EmergencyAction) -> int:
        """Do it; return how many replicas it concerns."""
        if action.kind is Emergency.SHED:
            self.dispatcher.set_emergency(shed_limits=action.amount)
        elif action.kind is Emergency.SPILL_SHORT:
            self.dispatcher.set_emergency(spill_tokens=action.amount)
        return int(self.dispatcher.views.size)

    def undo(self, kind: Emergency, replica: int | None = None) -> None:
        """Take it back."""
        if kind is Emergency.SHED:
            self.dispatcher.set_emergency(shed_limits=np.inf)
        elif kind is Emergency.SPILL_SHORT:
            self.dispatcher.set_emergency(spill_tokens=0.0)
