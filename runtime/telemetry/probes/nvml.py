"""Samples the GPUs of a server through NVML.

What a GPU does not support is absent and asked for only once. Nothing is ever set: clocks, limits,
MIG and the like stay as they are.

Does not know: the host, the engines, or how samples are sent.
Source: nvidia-ml-py 13 (module pynvml).
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Final

import pynvml

from ..signals import Scope
from . import nvml_gpm
from .nvml_events import XidEvents
from .nvml_faults import Values, column, translated
from .nvml_fields import FAST_FIELDS, SLOW_FIELDS, FieldBatch
from .nvml_gpm import GpmPair
from .nvml_queries import EVERY_SAMPLE, HEALTH_PERIOD_S, Queries
from .paced_readings import PacedReadings, Reading, ReadingError
from .probe import Members, ProbeUnavailableError, Readings

_LOG = logging.getLogger(__name__)
_XID_COLUMN: Final = column("xid_errors")


class NvmlProbe:
    """Samples all GPUs that the driver shows."""

    def __init__(
        self,
        *,
        budget_s: float = 0.05,
        nvml: ModuleType | Any = pynvml,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connect to the driver; a sample takes about `budget_s` at most.

        Raises: ProbeUnavailableError if the driver or its library is not there.
        """
        self._nvml = nvml
        self._clock = clock
        self._lock = threading.Lock()
        self._pairs: list[GpmPair] = []
        self._is_open = False
        _initialise(nvml)
        self._is_open = True
        try:
            handles, names = self._find_gpus()
            self._members = Members(gpus=names)
            self._events = XidEvents(nvml, handles)
            readings = [
                reading
                for row, handle in enumerate(handles)
                for reading in self._readings_of(row, handle, len(handles))
            ]
        except BaseException:
            nvml.nvmlShutdown()
            raise
        self._paced = PacedReadings(readings, budget_s=budget_s, clock=clock)

    @property
    def members(self) -> Members:
        """The GPUs by their UUID, in the driver's order."""
        return self._members

    def sample(self) -> Readings:
        """Read the GPUs.

        Raises: ProbeUnavailableError if the probe was closed.
        """
        readings = self._members.absent()
        gpus = readings[Scope.GPU]
        with self._lock:
            if not self._is_open:
                msg = "the NVML probe is closed; make a new one"
                raise ProbeUnavailableError(msg)
            self._paced.sample(gpus)
            gpus[:, _XID_COLUMN] = self._events.counts()
        return readings

    def close(self) -> None:
        """Free the samples and leave NVML."""
        with self._lock:
            if not self._is_open:
                return
            self._is_open = False
            for give_back in (*(pair.close for pair in self._pairs), self._events.close):
                try:
                    give_back()
                except self._nvml.NVMLError as error:  # of a lost GPU, for instance
                    _LOG.info("NVML did not take back what a probe held: %s", error)
            self._nvml.nvmlShutdown()

    def _find_gpus(self) -> tuple[list[Any], tuple[str, ...]]:
        handles, names = [], []
        for index in range(self._nvml.nvmlDeviceGetCount()):
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                names.append(str(self._nvml.nvmlDeviceGetUUID(handle)))
                handles.append(handle)
            except self._nvml.NVMLError as error:
                _LOG.warning("GPU %d is left out: %s", index, error)
        return handles, tuple(names)

    def _readings_of(self, row: int, handle: Any, num_gpus: int) -> Iterator[Reading]:
        nvml, gpu = self._nvml, f"GPU {row}"

        def reading(name: str, period_s: float, read: Callable[[], Values | None]) -> Reading:
            what = f"{gpu} {name}"
            return Reading(name=what, row=row, period_s=period_s, read=translated(nvml, what, read))

        fast = FieldBatch(nvml, handle, FAST_FIELDS, gpu)
        yield reading("fields", EVERY_SAMPLE, fast.read)
        yield reading(
            "slow fields", HEALTH_PERIOD_S, FieldBatch(nvml, handle, SLOW_FIELDS, gpu).read
        )
        has_gpm = nvml_gpm.is_supported(nvml, handle)
        if has_gpm:
            pair = GpmPair(nvml, handle, gpu, self._clock)
            self._pairs.append(pair)
            yield reading("GPM metrics", EVERY_SAMPLE, pair.read)
        queries = Queries(nvml, handle, num_gpus).by_period(
            has_gpm=has_gpm, has_power_field=_has_power_field(nvml, fast)
        )
        for name, period_s, query in queries:
            yield reading(name, period_s, query)


def _initialise(nvml: ModuleType | Any) -> None:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        missing = (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded)
        why = "the NVIDIA driver is not there" if isinstance(error, missing) else "NVML refused"
        msg = (
            f"{why}: {error} (libnvidia-ml.so.1); install the driver, or in a container ask for "
            "its utility capability; without a GPU use the recorded backend, or the host's alone"
        )
        raise ProbeUnavailableError(msg) from error


def _has_power_field(nvml: ModuleType | Any, fields: FieldBatch) -> bool:
    try:
        return column("power_watts") in fields.read()
    except (ReadingError, nvml.NVMLError):
        return False
