"""The values of a fleet with their ages: what the hub has, and a copy of it for who asks.

Does not know: frames, or codes.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...env.state.cluster_state import ClusterState
from ...env.state.feature import FloatArray, Node
from ...env.state.registry import FEATURES_BY_NODE, column
from .fleet_layout import NONE, FleetLayout
from .rack_layout import RACK_NODES
from .state_kernel import copy_state


class FleetValues:
    """Values of all nodes of a fleet, in one flat array with a view for each kind."""

    def __init__(self, layout: FleetLayout, *, max_age_s: float) -> None:
        self._layout = layout
        self._max_age_s = max_age_s
        sizes = {n: layout.num_rows[n] * len(FEATURES_BY_NODE[n]) for n in Node}
        self.first = dict(zip(Node, np.cumsum([0, *sizes.values()])[:-1].tolist(), strict=True))
        """By node kind: place of its first value in the flat arrays."""
        total = sum(sizes.values())
        self.flat = np.full(total, np.nan)
        self.flat_is_valid = np.zeros(total, np.bool_)
        self._views = {
            node: slice(self.first[node], self.first[node] + size) for node, size in sizes.items()
        }
        self.sampled_at_s = np.full(layout.num_rows[Node.SERVER], np.nan)
        """[servers]: never goes back."""
        widths = {node: len(FEATURES_BY_NODE[node]) for node in Node}
        self._all_put_at_s = np.full((len(widths), max(widths.values())), np.nan)
        self._put_at_s = {
            node: self._all_put_at_s[kind, : widths[node]] for kind, node in enumerate(Node)
        }
        self.is_put = np.zeros(total, np.bool_)
        """Features that were put: racks do not write them."""
        self._row_server = {node: self._servers_of(node) for node in RACK_NODES}
        self._rows = np.concatenate([self._rows_of(kind, n) for kind, n in enumerate(Node)])
        ends = np.cumsum([0, *(layout.num_rows[node] for node in Node)]).tolist()
        self._parts = {
            node: (
                (layout.num_rows[node], widths[node]),
                self._views[node],
                slice(*ends[k : k + 2]),
            )
            for k, node in enumerate(Node)
        }

    def put(self, node: Node, values: Mapping[str, ArrayLike], at_s: float) -> bool:
        """Set features of all rows of a kind; return False, doing nothing, for a moment gone by."""
        number = self._layout.num_rows[node]
        columns = [column(node, name) for name in values]
        arrays = [np.asarray(value, np.float64) for value in values.values()]
        for name, array in zip(values, arrays, strict=True):
            if array.shape != (number,):
                msg = f"{node} feature {name!r} must have shape ({number},), got {array.shape}"
                raise ValueError(msg)
        if not at_s >= np.nan_to_num(self._put_at_s[node][columns], nan=-np.inf).max(
            initial=-np.inf
        ):
            return False
        table, is_valid, is_put = self._tables(node)
        for place, array in zip(columns, arrays, strict=True):
            is_finite = np.isfinite(array)
            table[:, place] = np.where(is_finite, array, np.nan)
            is_valid[:, place] = is_finite
            is_put[:, place] = True
        self._put_at_s[node][columns] = at_s
        return True

    def mask(self, servers: NDArray[np.int64]) -> None:
        """Mask all that racks said of some servers."""
        for node, of_row in self._row_server.items():
            _, is_valid, is_put = self._tables(node)
            rows = np.isin(of_row, servers)
            is_valid[rows] &= is_put[rows]

    def state(self, now_s: float) -> ClusterState:
        """Return a copy of everything, masked where it is too old."""
        flat, flat_is_valid = np.empty_like(self.flat), np.empty_like(self.flat_is_valid)
        all_ages_s = np.empty(len(self._rows))
        copy_state(
            (now_s, self._max_age_s), self._rows, self._all_put_at_s, self.sampled_at_s,
            (self.flat, self.flat_is_valid), (flat, flat_is_valid, all_ages_s),
        )  # fmt: skip
        values, is_valid, ages_s = {}, {}, {}
        for node, (shape, cells, rows) in self._parts.items():
            values[node] = flat[cells].reshape(shape)
            is_valid[node] = flat_is_valid[cells].reshape(shape)
            ages_s[node] = all_ages_s[rows]
        return ClusterState(
            now_s=now_s,
            values=values,
            is_valid=is_valid,
            age_s=ages_s,
            gpu_replica=self._layout.gpu_replica,
            gpu_server=self._layout.gpu_server,
            edges=self._layout.edges,
        )

    def _tables(self, node: Node) -> tuple[FloatArray, NDArray[np.bool_], NDArray[np.bool_]]:
        shape, part = (-1, len(FEATURES_BY_NODE[node])), self._views[node]
        return (
            self.flat[part].reshape(shape),
            self.flat_is_valid[part].reshape(shape),
            self.is_put[part].reshape(shape),
        )

    def _rows_of(self, kind: int, node: Node) -> NDArray[np.int64]:
        """Return the rows of a kind as `copy_state` takes them."""
        number, width = self._layout.num_rows[node], len(FEATURES_BY_NODE[node])
        rows = np.empty((number, 4), np.int64)
        rows[:, 0], rows[:, 3] = kind, width
        rows[:, 1] = self._row_server.get(node, NONE)
        rows[:, 2] = self.first[node] + width * np.arange(number)
        return rows

    def _servers_of(self, node: Node) -> NDArray[np.int64]:
        """Return the server of each row of a kind, `NONE` for rows that no rack has."""
        servers = np.full(self._layout.num_rows[node], NONE, np.int64)
        for rack, rows in zip(self._layout.racks, self._layout.rows, strict=True):
            place, own = rows[node], rows[Node.SERVER][rack.row_server[node]]
            servers[place[place != NONE]] = own[place != NONE]
        return servers
