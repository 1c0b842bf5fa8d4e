"""Critical errors of the driver (XID), counted for each GPU without waiting for one.

Does not know: what an XID means, or other calls of NVML.
Source: nvmlEventSet* in nvidia-ml-py 13.
"""

import logging
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final

import numpy as np

from .probe import FloatArray

_LOG = logging.getLogger(__name__)
# Events beyond these wait for the next sample.
_MAX_EVENTS_A_POLL: Final = 64


class XidEvents:
    """Counts the XID errors of a server's GPUs since the probe's start."""

    def __init__(self, nvml: ModuleType | Any, handles: Sequence[Any]) -> None:
        self._nvml = nvml
        self._rows: dict[int, int] = {}
        self._counts = np.full(len(handles), np.nan)
        try:
            self._set = nvml.nvmlEventSetCreate()
        except nvml.NVMLError as error:  # not on every system
            self._set = None
            _LOG.info("XID events are not counted: %s", error)
            return
        for row, handle in enumerate(handles):
            self._register(row, handle)

    def counts(self) -> FloatArray:
        """Return the errors so far, of each GPU; NaN where they cannot be counted.

        Shapes: [gpus].
        """
        if self._rows:
            self._poll()
        return self._counts

    def close(self) -> None:
        """Give back the event set."""
        if self._set is not None:
            self._nvml.nvmlEventSetFree(self._set)

    def _register(self, row: int, handle: Any) -> None:
        nvml, kind = self._nvml, self._nvml.nvmlEventTypeXidCriticalError
        try:
            if nvml.nvmlDeviceGetSupportedEventTypes(handle) & kind:
                nvml.nvmlDeviceRegisterEvents(handle, kind, self._set)
                self._rows[nvml.nvmlDeviceGetIndex(handle)] = row
                self._counts[row] = 0.0
        except nvml.NVMLError as error:
            _LOG.info("XID events of GPU %d are not counted: %s", row, error)

    def _poll(self) -> None:
        nvml = self._nvml
        for _ in range(_MAX_EVENTS_A_POLL):
            try:
                event = nvml.nvmlEventSetWait_v2(self._set, 0)
                row = self._rows.get(nvml.nvmlDeviceGetIndex(event.device))
            except nvml.NVMLError:  # a timeout: there is none; or the GPU that it is about is lost
                return
            if row is not None and event.eventType & nvml.nvmlEventTypeXidCriticalError:
                self._counts[row] += 1
                _LOG.warning("GPU %d reported XID %d", row, event.eventData)
