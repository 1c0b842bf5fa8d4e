"""Which probes make up a server's: the named choices of where telemetry comes from.

Does not know: how any of them reads, or how samples are sent.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from .engine_pages_probe import EnginePagesProbe
from .host import HostProbe
from .nvml import NvmlProbe
from .probe import JoinedProbe, Probe, ProbeUnavailableError
from .recorded import BUNDLED_RECORDING, RecordedProbe, load_recording
from .synthetic import SyntheticProbe

_LOG = logging.getLogger(__name__)
Pages = Mapping[str, str]
"""By replica: the address of its engine's metrics page."""


def gpu_server(pages: Pages) -> Probe:
    """Return a probe of the host, its GPUs and its engines.

    Raises: ProbeUnavailableError if there is no NVIDIA driver.
    """
    return JoinedProbe([HostProbe(), NvmlProbe(), EnginePagesProbe(pages)])


def cpu_server(pages: Pages) -> Probe:
    """Return a probe of the host and its engines, such as a llama.cpp server on processors."""
    return JoinedProbe([HostProbe(), EnginePagesProbe(pages)])


def this_server(pages: Pages) -> Probe:
    """Return a probe of the host, its engines, and its GPUs if it has any."""
    try:
        return gpu_server(pages)
    except ProbeUnavailableError as error:
        _LOG.warning("GPUs are not sampled: %s", error)
        return cpu_server(pages)


def recorded(path: Path = BUNDLED_RECORDING) -> Probe:
    """Return a probe that plays a recording, the bundled one if none is named.

    Raises: ProbeUnavailableError if it cannot be read.
    """
    return RecordedProbe(load_recording(path))


BACKENDS: Final[dict[str, Callable[[Pages], Probe]]] = {
    "auto": this_server,
    "nvml": gpu_server,
    "host": cpu_server,
    "recorded": lambda _pages: recorded(),
    "synthetic": lambda _pages: SyntheticProbe(),
}
"""By name: what makes the probe of a server, given its engines' metrics pages."""
