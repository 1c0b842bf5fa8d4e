"""What an error of NVML means for the readings that are to come.

Does not know: which calls are made.
Source: nvmlReturn_t as in nvidia-ml-py.
"""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from ..signals import Scope, signal_index
from .paced_readings import LostError, ReadingError, UnsupportedError

Values = Mapping[int, float]
"""By column of the signals of a GPU."""

_UNSUPPORTED = (
    "NVML_ERROR_NOT_SUPPORTED",
    "NVML_ERROR_INVALID_ARGUMENT",  # a field or link that this driver or GPU does not have
    "NVML_ERROR_NO_PERMISSION",
    "NVML_ERROR_FUNCTION_NOT_FOUND",
    "NVML_ERROR_ARGUMENT_VERSION_MISMATCH",
    "NVML_ERROR_DEPRECATED",
)
# What must be done for the GPU to come back; NVML itself no longer answers for it.
_LOST = {
    "NVML_ERROR_GPU_IS_LOST": "NVML_GPU_RECOVERY_ACTION_NODE_REBOOT",
    "NVML_ERROR_RESET_REQUIRED": "NVML_GPU_RECOVERY_ACTION_GPU_RESET",
}


def column(name: str) -> int:
    """Return the column of a signal of a GPU."""
    return signal_index(Scope.GPU, name)


def fault(nvml: ModuleType | Any, code: int, what: str) -> ReadingError:
    """Return the error that says what a return code other than success means."""
    for name in _UNSUPPORTED:
        if code == getattr(nvml, name, None):
            return UnsupportedError(f"{what}: {name}")
    for name, action in _LOST.items():
        if code == getattr(nvml, name):
            return LostError(f"{what}: {name}", {column("recovery_action"): getattr(nvml, action)})
    return ReadingError(f"{what}: NVML return code {code}")


def translated(
    nvml: ModuleType | Any, what: str, read: Callable[[], Values | None]
) -> Callable[[], Values | None]:
    """Return a reading whose errors are those of `paced_readings.py`."""

    def checked() -> Values | None:
        try:
            return read()
        except nvml.NVMLError as error:
            raise fault(nvml, error.value, what) from error

    return checked
