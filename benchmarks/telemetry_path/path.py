"""Aggregators and hub of a simulated fleet, fed by hand: no transport, any clock.

Does not know: where the time comes from.
"""

from collections.abc import Iterable

from telemetry_path.measures import CpuMeter
from trimtab.env.state.cluster_state import ClusterState
from trimtab.runtime.telemetry.aggregator import Aggregator
from trimtab.runtime.telemetry.derivation import Derivation
from trimtab.runtime.telemetry.features.link_features import rack_links
from trimtab.runtime.telemetry.features.rack_constants import rack_constants
from trimtab.runtime.telemetry.fleet_layout import FleetLayout, fleet_of_racks
from trimtab.runtime.telemetry.hub import Hub
from trimtab.runtime.telemetry.rack_layout import RackLayout, ServerPlace
from trimtab.runtime.telemetry.reasons import Reason
from trimtab.runtime.telemetry.simulated.layout import SimulatedLayout
from trimtab.runtime.telemetry.simulated.network import Delivery


def fleet_layout(layout: SimulatedLayout) -> FleetLayout:
    """Return where the rows of a simulated fleet stand."""
    racks = []
    for rack in range(layout.num_racks):
        facts = [layout.facts(s) for s in layout.servers_of(rack)]
        places = tuple(
            ServerPlace(
                server=one.name,
                probe=one.name,
                num_gpus=len(one.gpus),
                num_replicas=len(one.replicas),
                num_links=len(rack_links((one,))),
            )
            for one in facts
        )
        racks.append(RackLayout(rack=layout.rack_name(rack), servers=places))
    return fleet_of_racks(racks)


def aggregators(layout: SimulatedLayout, fleet: FleetLayout) -> dict[str, Aggregator]:
    """Return an aggregator for each rack of a simulated fleet, by name."""
    made = {}
    for i, rack in enumerate(fleet.racks):
        constants = rack_constants([layout.facts(s) for s in layout.servers_of(i)])
        made[rack.rack] = Aggregator(rack, Derivation(constants), epoch=1, index=i)
    return made


class Turns:
    """Whose turn it is to sum up: racks follow one another, each once in a period.

    A state can then be out as soon as one rack is done, and none waits for all the others.
    """

    def __init__(self, racks: list[str], period_s: float) -> None:
        self._racks, self._period_s = racks, period_s
        self._taken = 0

    def due(self, now_s: float) -> str | None:
        """Return the rack that is due, None if none is; turns missed for a period are left out."""
        number = int(now_s * len(self._racks) / self._period_s + 1e-9)
        if number <= self._taken:
            return None
        self._taken = max(self._taken + 1, number - len(self._racks) + 1)
        return self._racks[self._taken % len(self._racks)]


class Path:
    """From frames of probes to states of the fleet, in one process."""

    def __init__(self, layout: SimulatedLayout) -> None:
        fleet = fleet_layout(layout)
        self.aggregators = aggregators(layout, fleet)
        self.hub = Hub(fleet)
        self.num_frames = 0
        self.num_rack_bytes = 0

    def deliver(self, deliveries: Iterable[Delivery], received_at_s: float | None = None) -> None:
        """Give frames to their aggregators; without a moment, at that of their arrival."""
        ingest = {rack: one.ingest for rack, one in self.aggregators.items()}
        for arrives_at_s, _, _, rack, body in deliveries:
            ingest[rack](body, arrives_at_s if received_at_s is None else received_at_s)
            self.num_frames += 1

    def pings(self, now_s: float) -> list[tuple[str, bytes]]:
        """Return the questions for probes' clocks that are due."""
        return [ping for one in self.aggregators.values() for ping in one.pings(now_s)]

    @property
    def racks(self) -> list[str]:
        """Return the racks in the order in which they take their turns."""
        return list(self.aggregators)

    def tick(self, rack: str, now_s: float, cpu: CpuMeter) -> ClusterState:
        """Let the aggregator of a rack sum up, and return the state of the fleet."""
        with cpu.part("tick"):
            frames = self.aggregators[rack].tick(now_s)
        self.num_rack_bytes += sum(map(len, frames))
        return self.take(frames, now_s, cpu)

    def take(self, frames: Iterable[bytes], now_s: float, cpu: CpuMeter) -> ClusterState:
        """Give frames of aggregators to the hub, and return the state of the fleet."""
        with cpu.part("hub"):
            for body in frames:
                self.hub.ingest(body, now_s)
            for wanted in self.hub.wanted_keys(now_s):
                self.aggregators[wanted].request_key()
            return self.hub.state(now_s)

    def counted(self, without: Iterable[str] = ()) -> dict[Reason, int]:
        """Return what aggregators and hub did not use, by reason, those of some probes left out."""
        total = {reason: self.hub.counts[reason] for reason in Reason}
        for one in self.aggregators.values():
            for reason in Reason:
                total[reason] += one.counts[reason]
            for probe in without:
                for reason, number in one.counts.of_probe(probe).items():
                    total[reason] -= number
        return {reason: number for reason, number in total.items() if number}
