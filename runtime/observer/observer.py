"""Probes and aggregator of the servers of a live fleet that are reached from this machine.

Each server has a probe of its engines' metrics pages; this machine's own figures and GPUs go with
the first. One aggregator sums them up for the hub.

Does not know: what a page says, or what becomes of the frames.
"""

import asyncio
import logging
from pathlib import Path
from typing import Final

from ...env.cluster import ClusterSpec, ServerSpec
from ..launcher.live_fleet_file import LiveFleetSpec
from ..telemetry import subjects
from ..telemetry.aggregator import Aggregator
from ..telemetry.derivation import Derivation
from ..telemetry.features.rack_constants import rack_constants
from ..telemetry.features.server_facts import facts_of_cluster
from ..telemetry.fleet_layout import FleetLayout, fleet_of_cluster
from ..telemetry.probes.engine_pages_probe import EnginePagesProbe
from ..telemetry.probes.host import HostProbe
from ..telemetry.probes.nvml import NvmlProbe
from ..telemetry.probes.probe import JoinedProbe, Probe, ProbeUnavailableError
from ..telemetry.probes.runner import Place, ProbeRunner, start_epoch
from ..telemetry.service import AggregatorService
from ..telemetry.socket_transport import SocketTransport
from .unseen_gpus import UnseenGpus

_LOG = logging.getLogger(__name__)
RACK: Final = "rack-000"
SHARED: Final = (subjects.rack(subjects.ANY), subjects.key_request(subjects.ANY))
"""Frames that cross to the gateway: summed up by rack, and requests for keys."""
# Pages a second that one process reads at most, so that it leaves the machine to others.
_PAGES_PER_S = 160.0
_SHORTEST_PERIOD_S = 0.1
# A page that was read longer ago is no sign of anything.
_MAX_PAGE_AGE_S = 5.0


def page_period_s(num_replicas: int) -> float:
    """Return the time between two readings of a page."""
    return max(_SHORTEST_PERIOD_S, num_replicas / _PAGES_PER_S)


def layout_of(cluster: ClusterSpec) -> FleetLayout:
    """Return the fleet as this observer and a hub both see it: all servers in one rack."""
    return fleet_of_cluster(cluster, {RACK: [server.name for server in cluster.servers]})


def _probe_of(spec: LiveFleetSpec, server: ServerSpec, *, is_here: bool) -> Probe:
    """Return the probe of a server; of one that is not this machine only pages are read."""
    pages = {
        replica.name: f"{replica.url}/metrics"
        for replica, placed in zip(spec.replicas, spec.cluster.replicas, strict=True)
        if placed.server == server.name
    }
    period_s = page_period_s(len(spec.replicas))
    parts: list[Probe] = [EnginePagesProbe(pages, period_s=period_s, max_age_s=_MAX_PAGE_AGE_S)]
    gpus = _gpus_of(server) if is_here else UnseenGpus(server.num_gpus)
    parts.insert(0, gpus)
    if is_here:
        parts.insert(0, HostProbe())
    return JoinedProbe(parts)


def _gpus_of(server: ServerSpec) -> Probe:
    """Return a probe of this machine's GPUs, if they are those that the cluster file names."""
    try:
        probe = NvmlProbe()
    except ProbeUnavailableError as error:
        _LOG.info("GPUs are not sampled: %s", error)
        return UnseenGpus(server.num_gpus)
    if len(probe.members.gpus) != server.num_gpus:
        _LOG.warning(
            "GPUs are not sampled: the driver shows %d, the cluster file names %d for '%s'",
            len(probe.members.gpus), server.num_gpus, server.name,
        )  # fmt: skip
        probe.close()
        return UnseenGpus(server.num_gpus)
    return probe


async def observe(spec: LiveFleetSpec, socket_path: Path, stop: asyncio.Event) -> None:
    """Send what is seen of a fleet to who listens on a socket, until told to stop."""
    cluster, layout = spec.cluster, layout_of(spec.cluster)
    (rack,) = layout.racks
    names = [server.name for server in cluster.servers]
    constants = rack_constants(facts_of_cluster(cluster, names))
    transport = await SocketTransport.connect(socket_path, SHARED)
    aggregator = Aggregator(rack, Derivation(constants), epoch=start_epoch())
    probes = [_probe_of(spec, server, is_here=i == 0) for i, server in enumerate(cluster.servers)]
    services: list[AggregatorService | ProbeRunner] = [AggregatorService(aggregator, transport)]
    services += [
        ProbeRunner(probe, Place(probe=name, server=name, rack=RACK), transport)
        for probe, name in zip(probes, names, strict=True)
    ]
    tasks = [asyncio.create_task(service.run()) for service in services]
    stopping = asyncio.create_task(stop.wait())
    try:
        # A service that ends by itself has failed: the process ends with its error.
        done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopping}:
            task.result()
    finally:
        for service in services:
            service.stop()
        stopping.cancel()
        await asyncio.gather(*tasks, stopping, return_exceptions=True)
        for probe in probes:
            probe.close()
        await transport.close()
