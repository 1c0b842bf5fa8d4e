"""Field values of NVML: many numbers of a GPU in one call.

Does not know: GPM metrics or other functions of NVML, or when fields are read.
Source: field ids, units and scopes as in nvml.h and nvidia-ml-py 13.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from .nvml_faults import Values, column, fault
from .paced_readings import LostError, UnsupportedError

_LOG = logging.getLogger(__name__)
_KIB = 1024.0
_MILLI = 1e-3
_NANO = 1e-9
# "A link ID of UINT_MAX returns aggregate value summed up across all links" (nvml.h)
_ALL_LINKS: Final = 0xFFFFFFFF
_EACH_LINK: Final = range(18)
# Values at which NVML and DCGM say "not available": all ones, and the blanks of DCGM.
_BLANK_32: Final = 0xFFFFFFFF
_BLANK_64: Final = 0x7FFFFFFFFFFFFFF0


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of NVML and the signal that it is part of."""

    signal: str
    name: str
    """Of the constant, without NVML_FI_DEV_."""
    unit: float = 1.0
    """Of the field, in units of the signal."""
    scope: int = 0
    choice: int = 0
    """Fields of one choice add up; of several choices the lowest that is supported counts."""


FAST_FIELDS: Final = (
    Field(signal="power_watts", name="POWER_INSTANT", unit=_MILLI),
    Field(signal="energy_joules", name="TOTAL_ENERGY_CONSUMPTION", unit=_MILLI),
    Field(signal="memory_temperature_celsius", name="MEMORY_TEMP"),
    Field(signal="pcie_tx_bytes", name="PCIE_COUNT_TX_BYTES"),
    Field(signal="pcie_rx_bytes", name="PCIE_COUNT_RX_BYTES"),
    Field(signal="nvlink_tx_bytes", name="NVLINK_THROUGHPUT_DATA_TX", unit=_KIB, scope=_ALL_LINKS),
    Field(signal="nvlink_rx_bytes", name="NVLINK_THROUGHPUT_DATA_RX", unit=_KIB, scope=_ALL_LINKS),
    Field(signal="power_throttle_s", name="CLOCKS_EVENT_REASON_SW_POWER_CAP", unit=_NANO),
    Field(signal="thermal_throttle_s", name="CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN", unit=_NANO),
    Field(signal="thermal_throttle_s", name="CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN", unit=_NANO),
    Field(signal="brake_throttle_s", name="CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN",
          unit=_NANO),
)  # fmt: skip
"""What changes from sample to sample."""

SLOW_FIELDS: Final = (
    Field(signal="recovery_action", name="GET_GPU_RECOVERY_ACTION"),
    Field(signal="pcie_replays", name="PCIE_REPLAY_COUNTER"),
    Field(signal="nvlink_errors", name="NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL"),
    Field(signal="nvlink_errors", name="NVLINK_CRC_DATA_ERROR_COUNT_TOTAL"),
    Field(signal="nvlink_errors", name="NVLINK_REPLAY_ERROR_COUNT_TOTAL"),
    Field(signal="nvlink_errors", name="NVLINK_RECOVERY_ERROR_COUNT_TOTAL"),
    *(
        Field(signal="nvlink_errors", name=f"NVLINK_ERROR_DL_{what}", scope=link, choice=1)
        for link in _EACH_LINK
        for what in ("CRC", "REPLAY", "RECOVERY")
    ),
)
"""What seldom changes: errors, and what must be done about them."""


class FieldBatch:
    """Reads a list of fields of one GPU in one call, without those that it does not have."""

    def __init__(
        self, nvml: ModuleType | Any, handle: Any, fields: Sequence[Field], gpu: str
    ) -> None:
        self._nvml = nvml
        self._handle = handle
        self._gpu = gpu
        self._fields = [field for field in fields if hasattr(nvml, _constant(field))]
        self._ids = self._ids_of(self._fields)
        self._members = _members_by_type(nvml)

    def read(self) -> Values:
        """Return the values of the signals, by column.

        Raises:
            UnsupportedError: the GPU has none of the fields.
            LostError: the GPU is lost.
            NVMLError: the call as a whole failed.
        """
        found: dict[str, dict[int, float]] = defaultdict(dict)
        refused = []
        if self._fields:
            results = self._nvml.nvmlDeviceGetFieldValues(self._handle, self._ids)
            for field, result in zip(self._fields, results, strict=True):
                if not self._is_supported(field, result):
                    refused.append(field)
                elif (value := self._value(result)) is not None:
                    sums = found[field.signal]
                    sums[field.choice] = sums.get(field.choice, 0.0) + value * field.unit
        self._keep_what_counts(found, refused)
        return {column(signal): sums[min(sums)] for signal, sums in found.items()}

    def _is_supported(self, field: Field, result: Any) -> bool:
        if result.nvmlReturn == self._nvml.NVML_SUCCESS:
            return True
        error = fault(self._nvml, result.nvmlReturn, f"{self._gpu} field {field.name}")
        if isinstance(error, LostError):
            raise error
        return not isinstance(error, UnsupportedError)

    def _value(self, result: Any) -> float | None:
        """Return the number in a result; None for one that came without, or that means none."""
        if result.nvmlReturn != self._nvml.NVML_SUCCESS:
            return None
        member, blank = self._members[result.valueType]
        value = getattr(result.value, member)
        return None if blank is not None and value >= blank else float(value)

    def _keep_what_counts(
        self, found: dict[str, dict[int, float]], refused: Sequence[Field]
    ) -> None:
        """Drop fields that were refused, and those of a choice that another one makes idle."""
        kept = [
            field
            for field in self._fields
            if field not in refused
            and field.choice <= min(found.get(field.signal, {field.choice: 0.0}))
        ]
        left = {field.name for field in kept}
        if gone := [name for name in _names(refused) if name not in left]:
            _LOG.info("%s does not have these fields: %s", self._gpu, ", ".join(gone))
        if not kept:
            msg = f"{self._gpu} has none of the fields"
            raise UnsupportedError(msg)
        if len(kept) < len(self._fields):
            self._fields, self._ids = kept, self._ids_of(kept)

    def _ids_of(self, fields: Sequence[Field]) -> list[tuple[int, int]]:
        return [(getattr(self._nvml, _constant(field)), field.scope) for field in fields]


def _names(fields: Sequence[Field]) -> list[str]:
    """Return the names without repetition: a field may be there once for each link."""
    return list(dict.fromkeys(field.name for field in fields))


def _members_by_type(nvml: ModuleType | Any) -> dict[int, tuple[str, int | None]]:
    """By type: the member of the union that holds the value, and from where it means none."""
    return {
        nvml.NVML_VALUE_TYPE_DOUBLE: ("dVal", None),
        nvml.NVML_VALUE_TYPE_UNSIGNED_INT: ("uiVal", _BLANK_32),
        nvml.NVML_VALUE_TYPE_UNSIGNED_LONG: ("ulVal", _BLANK_64),
        nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: ("ullVal", _BLANK_64),
        nvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: ("sllVal", _BLANK_64),
        nvml.NVML_VALUE_TYPE_SIGNED_INT: ("siVal", None),
        nvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: ("usVal", None),
    }


def _constant(field: Field) -> str:
    return f"NVML_FI_DEV_{field.name}"
