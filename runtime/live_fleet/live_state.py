"""The state of a live fleet: what the hub has, and what only the gateway knows.

The short-term policy sees exactly what it saw in training: its features are read off the gateway's
view by the simulator's own reader. What no page says is absent, never 0.

Does not know: policies, or how pages reach the hub.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ...env.observation import OBSERVED
from ...env.simulator.readers.facts import facts_of
from ...env.simulator.readers.observed import fill_observed_replicas
from ...env.simulator.state_reader import RATE_GAIN
from ...env.state.cluster_state import ClusterState
from ...env.state.feature import FloatArray, Node
from ...env.state.graph import NUM_TENANTS
from ...env.state.registry import FEATURES_BY_NODE, column
from ..dispatcher.live_dispatcher import LiveDispatcher
from ..dispatcher.totals import DispatchTotals
from ..telemetry.hub import Hub

_REPLICA_NAMES = tuple(feature.name for feature in OBSERVED[Node.REPLICA])
# Features that stand on an engine's page: absent where it does not say them.
PAGE_NAMES: Final = (
    *("running_requests", "waiting_requests", "kv_usage_frac", "cached_frac"),
    *("iteration_log_ratio", "prefill_frac"),
)


@dataclass(slots=True)
class _Counts:
    """What was counted up to a moment."""

    at_s: float
    arrived: np.ndarray
    input_tokens: np.ndarray
    shed: np.ndarray
    late: np.ndarray
    finished: np.ndarray

    @classmethod
    def of(cls, totals: DispatchTotals, at_s: float) -> "_Counts":
        """Return the counts of this moment."""
        return cls(
            at_s, totals.arrived.copy(), totals.input_tokens.copy(), totals.shed.copy(),
            totals.late.copy(), totals.finished.copy(),
        )  # fmt: skip


@dataclass(slots=True)
class LiveState:
    """Puts the state of a fleet together."""

    hub: Hub
    dispatcher: LiveDispatcher
    seen: np.ndarray = field(init=False)
    """Which features a page of each replica has ever said; bool [R, PAGE_NAMES]."""
    _last: _Counts | None = None
    _mean_rate_rps: float = 0.0
    _tenants: FloatArray = field(init=False)
    _load_frac: float = np.nan
    _rate_change: float = np.nan

    def __post_init__(self) -> None:
        self.seen = np.zeros((self.dispatcher.views.size, len(PAGE_NAMES)), np.bool_)
        self._tenants = np.full((NUM_TENANTS, 4), np.nan)
        facts = facts_of(self.dispatcher.cluster)
        for node in (Node.GPU, Node.SERVER, Node.LINK):
            fixed = facts.fixed[node]
            names = {
                feature.name: fixed[:, place]
                for place, feature in enumerate(FEATURES_BY_NODE[node])
                if np.isfinite(fixed[:, place]).any()
            }
            if names and len(fixed):
                self.hub.put(node, names, 0.0)

    def end_window(self, now_s: float) -> None:
        """Take the differences of the window that ends."""
        counts = _Counts.of(self.dispatcher.totals, now_s)
        last, self._last = self._last, counts
        if last is None or not now_s > last.at_s:
            return
        span_s = now_s - last.at_s
        arrived = counts.arrived - last.arrived
        tokens = counts.input_tokens - last.input_tokens
        finished = counts.finished - last.finished
        with np.errstate(invalid="ignore", divide="ignore"):
            self._tenants = np.stack(
                [
                    arrived / span_s,
                    np.where(arrived > 0, tokens / arrived, 0.0),
                    np.where(arrived > 0, (counts.shed - last.shed) / arrived, 0.0),
                    np.where(finished > 0, (counts.late - last.late) / finished, 0.0),
                ],
                axis=1,
            )
        rate_rps = float(arrived.sum()) / span_s
        is_first = not self._mean_rate_rps > 0
        change = float(np.log((rate_rps + 1.0) / (self._mean_rate_rps + 1.0)))
        self._rate_change = 0.0 if is_first else change
        gain = 1.0 if is_first else RATE_GAIN
        self._mean_rate_rps += gain * (rate_rps - self._mean_rate_rps)
        most_per_s = float((1.0 / self.dispatcher.views["prefill_token_s"]).sum())
        self._load_frac = float(tokens.sum()) / span_s / most_per_s

    def read(self, now_s: float) -> ClusterState:
        """Return the state of this moment."""
        self._put_replicas(now_s)
        names = ("arrival_rate_rps", "mean_input_tokens", "shed_frac", "late_frac")
        tenants = {name: self._tenants[:, place] for place, name in enumerate(names)}
        self.hub.put(Node.TENANT, tenants, now_s)
        views = self.dispatcher.views
        fleet = {
            "load_frac": [self._load_frac],
            "arrival_log_change": [self._rate_change],
            "available_frac": [float(views["is_available"].mean())],
        }
        self.hub.put(Node.FLEET, fleet, now_s)
        return self.hub.state(now_s)

    def _put_replicas(self, now_s: float) -> None:
        views = self.dispatcher.views
        table = np.full((views.size, len(FEATURES_BY_NODE[Node.REPLICA])), np.nan)
        fleet = np.full((1, len(FEATURES_BY_NODE[Node.FLEET])), np.nan)
        fill_observed_replicas(views, self.dispatcher.nominal, now_s, table, fleet)
        values = {name: table[:, column(Node.REPLICA, name)] for name in _REPLICA_NAMES}
        for place, name in enumerate(PAGE_NAMES):
            values[name] = np.where(self.seen[:, place], values[name], np.nan)
        self.hub.put(Node.REPLICA, values, now_s)
