"""What a rack's features truly were, to compare what the hub published with.

Does not know: frames, clocks or aggregators: the derivation gets every sample, whole and in time.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from telemetry_path.schedule import Schedule
from trimtab.env.state.cluster_state import ClusterState
from trimtab.env.state.feature import Node
from trimtab.env.state.registry import FEATURES_BY_NODE, scaled
from trimtab.runtime.telemetry.derivation import NODES, NOT_DERIVED, Derivation
from trimtab.runtime.telemetry.features.rack_constants import rack_constants
from trimtab.runtime.telemetry.fleet_layout import FleetLayout
from trimtab.runtime.telemetry.raw_window import RawWindow

Features = dict[Node, NDArray[np.float64]]


def true_features(schedule: Schedule) -> list[Features]:
    """Return the features of the recorded rack, round by round, in scaled units."""
    layout = schedule.probes.layout
    derivation = Derivation(rack_constants([layout.facts(s) for s in schedule.recorded]))
    before = {s: np.full_like(block, np.nan) for s, block in schedule.rounds[0].blocks.items()}
    before_s = np.full(len(schedule.recorded), np.nan)
    truth = []
    for one in schedule.rounds:
        window = RawWindow(
            last=one.blocks,
            minimum=one.blocks,
            maximum=one.blocks,
            mean=one.blocks,
            previous_last=before,
            last_at_s=one.sampled_at_s,
            previous_at_s=before_s,
        )
        before, before_s = one.blocks, one.sampled_at_s
        truth.append({node: scaled(node, v) for node, (v, _) in derivation.derive(window).items()})
    return truth


@dataclass(slots=True)
class ErrorMeter:
    """Differences between published and true features of one rack, in scaled units."""

    fleet: FleetLayout
    rack: int
    truth: list[Features]
    is_honest: NDArray[np.bool_]
    """[servers of the rack]."""
    squares: float = 0.0
    number: int = 0
    most: float = 0.0
    num_absent: int = 0
    """Values that were there and were not published, or the other way round."""
    most_by_feature: dict[str, float] = field(default_factory=dict)

    def add(self, state: ClusterState, rounds: NDArray[np.int64]) -> None:
        """Compare a state with the rounds that it shows of the rack's servers."""
        layout = self.fleet.racks[self.rack]
        for node in NODES:
            of_rack = self.fleet.rows[self.rack][node]
            servers = layout.row_server[node]
            is_compared = (of_rack >= 0) & self.is_honest[servers] & (rounds[servers] >= 0)
            rows, shown = of_rack[is_compared], rounds[servers[is_compared]]
            published = np.where(state.is_valid[node], state.values[node], np.nan)[rows]
            true = np.empty_like(published)
            for k in np.unique(shown):
                true[shown == k] = self.truth[k][node][is_compared][shown == k]
            self._compare(node, scaled(node, published), true)

    def _compare(
        self, node: Node, published: NDArray[np.float64], true: NDArray[np.float64]
    ) -> None:
        names = [feature.name for feature in FEATURES_BY_NODE[node]]
        derived = [i for i, name in enumerate(names) if (node, name) not in NOT_DERIVED]
        error = np.abs(published[:, derived] - true[:, derived])
        is_known = np.isfinite(error)
        one_side = np.isfinite(published[:, derived]) != np.isfinite(true[:, derived])
        self.num_absent += int(one_side.sum())
        self.squares += float((error[is_known] ** 2).sum())
        self.number += int(is_known.sum())
        most = np.where(is_known, error, 0.0).max(axis=0, initial=0.0)
        for i, value in zip(derived, most, strict=True):
            name = f"{node}.{names[i]}"
            self.most_by_feature[name] = max(self.most_by_feature.get(name, 0.0), float(value))
        self.most = max(self.most, float(most.max(initial=0.0)))

    @property
    def rms(self) -> float:
        """Root of the mean square of the differences."""
        return float(np.sqrt(self.squares / max(self.number, 1)))
