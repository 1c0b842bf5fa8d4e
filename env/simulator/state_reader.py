"""Reads a `ClusterState` out of the simulator's arrays: only what a scheduler could see.

A full state is read by `StateReader.read`; training, which reads states of many fleets in every
window, takes only what its policy observes (`read_many`).

Does not know: how the arrays change, how single features are read (`readers/`), or how a state is
scaled for a policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..cluster import ClusterSpec
from ..observation import OBSERVED
from ..state.cluster_state import ClusterState
from ..state.edges import Edge, Edges
from ..state.feature import FloatArray, Node
from ..state.graph import edges_of, graph_of
from ..state.registry import FEATURES_BY_NODE, column
from .fleet_view import fleet_view
from .layout import NUM_PRIORITIES, SimulationArrays
from .readers.facts import facts_of
from .readers.gpus import fill_moment, fill_window
from .readers.observed import fill_observed_gpus, fill_observed_replicas
from .readers.pages import fill_pages
from .readers.places import fill_host_memory, fill_places
from .readers.replicas import fill_fleet_memory, fill_replicas, fill_works
from .readers.requests import fill_arrivals, fill_ended, fill_first_tokens, fill_open
from .readers.totals import (
    BUSY_S,
    ENERGY_J,
    NUM_MEANS,
    NUM_TOTALS,
    end_totals,
    update_means,
)
from .readers.traffic import NUM_TRAFFIC, fill_kv_rates, fill_links, fill_networks, fill_traffic
from .readers.work import NUM_WORKS
from .window import (
    ARRIVED,
    ENDED,
    INPUT_TOKENS,
    LATE,
    MISSED,
    NUM_COLUMNS,
    REFUSED,
    TPOT_LIMIT,
    TTFT_LIMIT,
    WITH_TOKEN,
)

# Weight of the newest window in the moving average of the arrival rate.
RATE_GAIN = 0.1

_STATE_AGE = column(Node.REPLICA, "state_age_s")
_TENANT_COLUMNS = [column(Node.TENANT, feature.name) for feature in OBSERVED[Node.TENANT]]
_FLEET_COLUMNS = [column(Node.FLEET, name) for name in ("load_frac", "arrival_log_change")]
# Nodes that are heard of when a window ends; all others at every moment.
_WINDOW_NODES = (Node.GPU, Node.SERVER, Node.LINK, Node.ZONE)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Window:
    """What is remembered of the last window; its arrays are never written to."""

    tenants: FloatArray
    """[NUM_PRIORITIES, 7]: as the short-term policy observes them; NaN where nothing is known."""
    used: FloatArray
    """[R, 2]: share of time in iterations, power in W."""
    totals: FloatArray
    """[R, NUM_TOTALS]: since the start."""
    added: FloatArray
    """[R, NUM_TOTALS]: in the window."""
    added_before: FloatArray
    """The same of the window before."""
    means: FloatArray
    """[R, NUM_MEANS]: moving averages over the windows before; NaN while there were none."""
    start_s: float = 0.0
    end_s: float = 0.0
    span_before_s: float = 0.0
    """Length of the window before; 0 while there was none."""
    first_arrival: int = 0
    """First request that arrived in it."""
    end_arrival: int = 0
    """One past the last."""
    num_settled_before: int = 0
    """Requests at the head of the table that had all ended when it began."""
    mean_rate_rps: float = 0.0
    load: float = 0.0
    """Prompt tokens that arrived over those that the fleet can compute."""
    rate_change: float = 0.0
    """Log ratio of the window's rate to the mean of those before."""
    num_settled: int = 0
    """Requests at the head of the table that had all ended."""

    @property
    def span_s(self) -> float:
        """Length; 0 before the first window has ended."""
        return self.end_s - self.start_s


def _tenant_rates(counts: FloatArray, span_s: float) -> FloatArray:
    """Return a window's rates from its counts, as `Window.tenants` has them."""
    num_arrived = counts[:, ARRIVED]
    least_one = np.maximum(num_arrived, 1.0)
    return np.stack(
        [
            num_arrived / span_s,
            counts[:, INPUT_TOKENS] / least_one,
            counts[:, REFUSED] / least_one,
            counts[:, LATE] / np.maximum(counts[:, WITH_TOKEN], 1.0),
            counts[:, MISSED] / np.maximum(counts[:, ENDED], 1.0),
            mean_limit_s(counts[:, TTFT_LIMIT], num_arrived),
            mean_limit_s(counts[:, TPOT_LIMIT], num_arrived),
        ],
        axis=1,
    )


def mean_limit_s(sums_s: FloatArray, num_arrived: FloatArray) -> FloatArray:
    """Return mean limits, NaN where nobody arrived."""
    return np.where(num_arrived > 0.0, sums_s / np.maximum(num_arrived, 1.0), np.nan)


def _next_means(window: Window) -> FloatArray:
    """Return the moving averages with a window taken in."""
    if not window.span_s > 0:
        return window.means
    means = np.empty_like(window.means)
    update_means(window.means, window.added, window.span_s, means)
    return means


class StateReader:
    """Turns the arrays into a state, keeping the totals of the last window to difference with."""

    def __init__(self, cluster: ClusterSpec) -> None:
        graph = graph_of(cluster)
        self.facts = facts_of(cluster)
        self.gpu_replica, self.gpu_server = graph.gpu_replica, graph.gpu_server
        self.host_gpu, self.host_replica = graph.host_gpu, graph.host_replica
        self.serving_server = np.ascontiguousarray(graph.gpu_server[: graph.num_hosting])
        self.is_sharing = graph.host_gpu.size > graph.num_hosting
        self._edges = edges_of(cluster)
        num_replicas = len(cluster.replicas)
        nothing = np.zeros((num_replicas, NUM_TOTALS))
        self.window = Window(
            tenants=_tenant_rates(np.zeros((NUM_PRIORITIES, NUM_COLUMNS)), 1.0),
            used=np.zeros((num_replicas, 2)),
            totals=nothing,
            added=nothing,
            added_before=nothing,
            means=np.full((num_replicas, NUM_MEANS), np.nan),
        )
        self._at_start = self.window

    def begin(self, arrays: SimulationArrays) -> None:
        """Forget the last window: the run begins."""
        used = self._at_start.used.copy()
        used[:, 1] = arrays.replicas["idle_w"]
        self.window = replace(self._at_start, used=used)

    def begin_window(self, arrays: SimulationArrays, handle: np.ndarray) -> None:
        """Take stock where the fleet has run on since the last window."""
        last = self.window
        if float(arrays.fleet["now_s"][0]) > last.end_s:
            totals = np.empty_like(last.totals)
            end_totals(handle, last.totals, totals, np.empty_like(totals))
            self.window = replace(last, totals=totals)

    def end_window(
        self,
        arrays: SimulationArrays,
        handle: np.ndarray,
        start: tuple[float, int],
        counts: tuple[FloatArray, int],
    ) -> None:
        """Take the differences of a window, and its counts.

        Shapes: `start` is the moment at which it began and the first request to arrive in it;
        `counts` the tenants' counts and the number settled, as `window_totals` returns them.
        """
        (start_s, first), (tenants, num_settled), last = start, counts, self.window
        now_s = float(arrays.fleet[0]["now_s"])
        span_s = now_s - start_s
        totals, added = np.empty_like(last.totals), np.empty_like(last.totals)
        end_totals(handle, last.totals, totals, added)
        used = added[:, [BUSY_S, ENERGY_J]] / span_s
        # An iteration that ends in this window may have begun before it.
        np.minimum(used[:, 0], 1.0, out=used[:, 0])
        rate_rps = float(tenants[:, ARRIVED].sum()) / span_s
        is_first = not last.mean_rate_rps > 0
        gain = 1.0 if is_first else RATE_GAIN
        change = float(np.log((rate_rps + 1.0) / (last.mean_rate_rps + 1.0)))
        tokens_per_s = float(tenants[:, INPUT_TOKENS].sum()) / span_s
        self.window = Window(
            tenants=_tenant_rates(tenants, span_s),
            used=used,
            totals=totals,
            added=added,
            added_before=last.added,
            means=_next_means(last),
            start_s=start_s,
            end_s=now_s,
            span_before_s=last.span_s,
            first_arrival=first,
            end_arrival=int(arrays.fleet[0]["next_arrival"]),
            num_settled_before=last.num_settled,
            mean_rate_rps=last.mean_rate_rps + gain * (rate_rps - last.mean_rate_rps),
            load=tokens_per_s / float((1.0 / fleet_view(arrays)["prefill_token_s"]).sum()),
            rate_change=0.0 if is_first else change,
            num_settled=num_settled,
        )

    def read(self, arrays: SimulationArrays, handle: np.ndarray) -> ClusterState:
        """Return the state of this moment, with every feature that the simulator models."""
        values = {node: table.copy() for node, table in self.facts.fixed.items()}
        now_s = float(arrays.fleet[0]["now_s"])
        self.fill_observed(arrays, values)
        traffic, rates = self._fill_traffic(handle, values)
        self._fill_engines(handle, values, (traffic, rates))
        waits_on = self._fill_requests(arrays, handle, values)
        places = (values[n] for n in (Node.REPLICA, Node.GPU, Node.SERVER, Node.ZONE))
        facts = self.facts
        fill_places(facts.replicas, facts.gpus, facts.servers, tuple(places))
        fill_host_memory(handle, facts.replicas, values[Node.SERVER], values[Node.ZONE])
        age_s = {node: np.zeros(len(table)) for node, table in values.items()}
        for node in _WINDOW_NODES:
            age_s[node] += now_s - self.window.end_s
        age_s[Node.REPLICA] = values[Node.REPLICA][:, _STATE_AGE].copy()
        edges = dict(self._edges)
        still = edges[Edge.WAITS_ON]
        edges[Edge.WAITS_ON] = Edges(source=still.source, target=still.target, values=waits_on)
        return ClusterState(
            now_s=now_s,
            values=values,
            is_valid={node: np.isfinite(table) for node, table in values.items()},
            age_s=age_s,
            gpu_replica=self.gpu_replica,
            gpu_server=self.gpu_server,
            edges=edges,
        )

    def fill_observed(self, arrays: SimulationArrays, values: dict[Node, FloatArray]) -> None:
        """Fill what the short-term policy sees.

        Shapes: `values[node]` [nodes, features], written; GPUs as in the graph.
        """
        window, facts = self.window, self.facts
        now_s = arrays.fleet["now_s"][0]
        fleet, view = values[Node.FLEET], fleet_view(arrays)
        fill_observed_replicas(view, arrays.nominal, now_s, values[Node.REPLICA], fleet)
        fill_observed_gpus(
            facts.replicas,
            facts.hosts,
            self.serving_server,
            window.used,
            values[Node.GPU],
            values[Node.SERVER],
        )
        values[Node.TENANT][:, _TENANT_COLUMNS] = window.tenants
        fleet[0, _FLEET_COLUMNS] = window.load, window.rate_change

    def _fill_traffic(
        self, handle: np.ndarray, values: dict[Node, FloatArray]
    ) -> tuple[FloatArray, FloatArray]:
        """Fill what moves at this moment; return it by replica and by link."""
        parts = self.facts.link_parts
        rates, traffic = np.empty(parts.size), np.empty((len(self.facts.replicas), NUM_TRAFFIC))
        fill_traffic(handle, parts, rates, traffic, values[Node.LINK])
        fill_kv_rates(traffic, values[Node.REPLICA])
        return traffic, rates

    def _fill_engines(
        self,
        handle: np.ndarray,
        values: dict[Node, FloatArray],
        moving: tuple[FloatArray, FloatArray],
    ) -> None:
        """Fill what engines, their GPUs and the links between these did and hold."""
        facts, window, (traffic, rates) = self.facts, self.window, moving
        replicas, links, fleet = (values[n] for n in (Node.REPLICA, Node.LINK, Node.FLEET))
        works = np.zeros((2, len(replicas), NUM_WORKS))
        fill_works(handle, facts.replicas, window.added, works[0])
        own = (window.span_s, window.added, window.means)
        fill_replicas(handle, facts.replicas, own, works[0], replicas)
        fill_pages(handle, replicas)
        fill_fleet_memory(window.added, replicas, fleet)
        fill_moment(handle, facts.replicas, facts.gpus, facts.hosts, replicas, values[Node.GPU])
        sums = np.zeros((len(links), 2))
        if window.span_s > 0:
            fill_works(handle, facts.replicas, window.added_before, works[1])
            fill_window(
                handle,
                facts.replicas,
                (facts.gpus, facts.hosts),
                (window.span_s, window.added, works[0], window.means, traffic),
                (window.span_before_s, window.added_before, works[1]),
                values[Node.GPU],
                sums,
            )
        fill_links(handle, facts.link_parts, rates, sums, links)
        fill_networks(handle, facts.servers, rates, sums, values[Node.SERVER], fleet)

    def _fill_requests(
        self, arrays: SimulationArrays, handle: np.ndarray, values: dict[Node, FloatArray]
    ) -> FloatArray:
        """Fill what requests say; return the attributes of the `WAITS_ON` edges."""
        window = self.window
        tables = tuple(values[node] for node in (Node.REPLICA, Node.TENANT, Node.FLEET))
        waits_on = np.zeros((self._edges[Edge.WAITS_ON].source.size, 2))
        next_arrival = int(arrays.fleet["next_arrival"][0])
        fill_open(handle, window.num_settled, next_arrival, tables, waits_on)
        if window.span_s > 0:
            fill_arrivals(handle, window.first_arrival, window.end_arrival, values[Node.TENANT])
            rows = (window.num_settled_before, window.end_arrival)
            span = (window.start_s, window.end_s)
            fill_first_tokens(handle, rows, span, tables)
            fill_ended(handle, rows, span, tables)
        return waits_on


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBatch:
    """What the short-term policy sees of n fleets of one cluster; all else is NaN.

    Shapes: `values[node]` [n, nodes, features]; a GPU stands there once for each replica that it
    serves, `gpu_replica` and `gpu_server` are of those.
    """

    values: dict[Node, FloatArray]
    gpu_replica: NDArray[np.int64]
    gpu_server: NDArray[np.int64]


def read_many(readers: Sequence[StateReader], arrays: Sequence[SimulationArrays]) -> StateBatch:
    """Return what a policy sees of fleets of one cluster at this moment."""
    reader, num = readers[0], len(readers)
    sizes = {
        Node.REPLICA: len(reader.facts.replicas),
        Node.GPU: reader.serving_server.size,
        Node.SERVER: len(reader.facts.servers),
        Node.TENANT: NUM_PRIORITIES,
        Node.FLEET: 1,
    }
    values = {
        node: np.full((num, size, len(FEATURES_BY_NODE[node])), np.nan)
        for node, size in sizes.items()
    }
    for node in (Node.GPU, Node.SERVER):
        values[node][:] = reader.facts.fixed[node][: sizes[node]]
    for i, (own, one) in enumerate(zip(readers, arrays, strict=True)):
        own.fill_observed(one, {node: table[i] for node, table in values.items()})
    if reader.is_sharing:
        values[Node.GPU] = values[Node.GPU][:, reader.host_gpu]
    return StateBatch(
        values=values,
        gpu_replica=reader.host_replica,
        gpu_server=reader.gpu_server[reader.host_gpu],
    )
