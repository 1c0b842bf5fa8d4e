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
from ...env.simulator.state_reader import RATE_GAIN, mean_limit_s
from ...env.state.cluster_state import ClusterState
from ...env.state.feature import FloatArray, Node
from ...env.state.graph import NUM_TENANTS
from ...env.state.registry import FEATURES_BY_NODE, column
from ..dispatcher.live_dispatcher import LiveDispatcher
from ..dispatcher.totals import DispatchTotals
from ..telemetry.hub import Hub

_REPLICA_COLUMNS = [column(Node.REPLICA, feature.name) for feature in OBSERVED[Node.REPLICA]]
_STATE_AGE = column(Node.REPLICA, "state_age_s")
_TENANT_COLUMNS = [column(Node.TENANT, feature.name) for feature in OBSERVED[Node.TENANT]]
_FLEET_COLUMNS = [column(Node.FLEET, feature.name) for feature in OBSERVED[Node.FLEET]]
_LOAD, _RATE_CHANGE = column(Node.FLEET, "load_frac"), column(Node.FLEET, "arrival_log_change")
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
    first_tokens: np.ndarray
    late_first_tokens: np.ndarray
    finished: np.ndarray
    missed: np.ndarray
    ttft_limit_s: np.ndarray
    tpot_limit_s: np.ndarray

    @classmethod
    def of(cls, totals: DispatchTotals, at_s: float) -> "_Counts":
        """Return the counts of this moment."""
        return cls(
            at_s, np.array(totals.arrived), np.array(totals.input_tokens), np.array(totals.shed),
            np.array(totals.first_tokens), np.array(totals.late_first_tokens),
            np.array(totals.finished), np.array(totals.late),
            np.array(totals.ttft_limit_s), np.array(totals.tpot_limit_s),
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
    _fixed: dict[Node, FloatArray] = field(init=False)
    _load_frac: float = np.nan
    _rate_change: float = np.nan

    def __post_init__(self) -> None:
        self.seen = np.zeros((self.dispatcher.views.size, len(PAGE_NAMES)), np.bool_)
        self._tenants = np.full((NUM_TENANTS, len(_TENANT_COLUMNS)), np.nan)
        facts = facts_of(self.dispatcher.cluster)
        self._fixed = {node: facts.fixed[node] for node in (Node.GPU, Node.SERVER, Node.LINK)}

    def end_window(self, now_s: float) -> None:
        """Take the differences of the window that ends."""
        totals = self.dispatcher.totals
        counts = _Counts.of(totals, now_s)
        last, self._last = self._last, counts
        totals.window_at_s = now_s
        if last is None or not now_s > last.at_s:
            return
        span_s = now_s - last.at_s
        arrived = counts.arrived - last.arrived
        tokens = counts.input_tokens - last.input_tokens
        first_tokens = counts.first_tokens - last.first_tokens
        late = counts.late_first_tokens - last.late_first_tokens
        finished = counts.finished - last.finished
        self._tenants = np.stack(
            [
                arrived / span_s,
                tokens / np.maximum(arrived, 1.0),
                (counts.shed - last.shed) / np.maximum(arrived, 1.0),
                late / np.maximum(first_tokens, 1.0),
                (counts.missed - last.missed) / np.maximum(finished, 1.0),
                mean_limit_s(counts.ttft_limit_s - last.ttft_limit_s, arrived),
                mean_limit_s(counts.tpot_limit_s - last.tpot_limit_s, arrived),
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
        """Return the state of this moment; what the gateway knows is not handed to the hub."""
        state = self.hub.state(now_s)
        for node, table in self._fixed.items():
            is_fixed = np.isfinite(table)
            state.values[node][is_fixed] = table[is_fixed]
            state.is_valid[node][is_fixed] = True
        fleet = np.full((1, len(FEATURES_BY_NODE[Node.FLEET])), np.nan)
        _set(state, Node.REPLICA, _REPLICA_COLUMNS, self._replicas(now_s, fleet))
        _set(state, Node.TENANT, _TENANT_COLUMNS, self._tenants)
        fleet[0, _LOAD], fleet[0, _RATE_CHANGE] = self._load_frac, self._rate_change
        _set(state, Node.FLEET, _FLEET_COLUMNS, fleet[:, _FLEET_COLUMNS])
        state.age_s[Node.REPLICA][:] = state.values[Node.REPLICA][:, _STATE_AGE]
        for node in (Node.TENANT, Node.FLEET):
            state.age_s[node][:] = 0.0
        return state

    def _replicas(self, now_s: float, fleet: FloatArray) -> FloatArray:
        """Return what the gateway knows of the replicas, and fill in what of the fleet."""
        views = self.dispatcher.views
        table = np.full((views.size, len(FEATURES_BY_NODE[Node.REPLICA])), np.nan)
        fill_observed_replicas(views, self.dispatcher.nominal, now_s, table, fleet)
        for place, name in enumerate(PAGE_NAMES):
            table[~self.seen[:, place], column(Node.REPLICA, name)] = np.nan
        return table[:, _REPLICA_COLUMNS]


def _set(state: ClusterState, node: Node, columns: list[int], values: FloatArray) -> None:
    """Put some features of all nodes of a kind into a state, NaN where absent."""
    state.values[node][:, columns] = values
    state.is_valid[node][:, columns] = np.isfinite(values)
