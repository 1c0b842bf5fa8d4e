"""Puts the zones' tariffs into a simulation: what holds at its start, and when it changes.

Does not know: how energy is billed (`tariff.py`).
"""

import numpy as np

from ..cluster import ClusterSpec
from ..energy_prices import JOULES_PER_KWH, EnergyConfig, Tariff
from .layout import CARBON, PRICE

# J in a MWh
_JOULES_PER_MWH = 1e3 * JOULES_PER_KWH


def _zones(cluster: ClusterSpec) -> list[str]:
    return list(dict.fromkeys(server.zone for server in cluster.servers))


def _rates(tariff: Tariff, at_s: float) -> tuple[float, float]:
    """Return (USD/J, g/J) at a moment of a tariff."""
    price, carbon = tariff.at(at_s)
    return price / _JOULES_PER_MWH, carbon / JOULES_PER_KWH


def set_tariffs(replicas: np.ndarray, cluster: ClusterSpec, config: EnergyConfig) -> None:
    """Give each replica its zone's tariff at the start."""
    zones = _zones(cluster)
    for record, replica in zip(replicas, cluster.replicas, strict=True):
        zone = cluster.server_of(replica).zone
        record["tariff"] = zones.index(zone)
        record["usd_per_j"], record["g_per_j"] = _rates(config.of_zone(zone), config.start_s)


def tariff_events(
    cluster: ClusterSpec, config: EnergyConfig, horizon_s: float
) -> list[tuple[float, int, int, float]]:
    """Return the changes of all zones' tariffs; none where a tariff is constant."""
    events = []
    for i, zone in enumerate(_zones(cluster)):
        tariff = config.of_zone(zone)
        before = _rates(tariff, config.start_s)
        for at_s in tariff.changes_s(config.start_s, horizon_s).tolist():
            # In the middle of the step: its start itself may be off by a rounding.
            rates = _rates(tariff, config.start_s + at_s + 0.5 * tariff.step_s)
            kinds = (PRICE, CARBON)
            events += [
                (at_s, kind, i, new)
                for kind, old, new in zip(kinds, before, rates, strict=True)
                if new != old
            ]
            before = rates
    return events
