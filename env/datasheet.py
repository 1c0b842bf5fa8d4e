"""Calibration of a GPU that nobody measured, from its datasheet and from GPUs that were.

The rule: the shares of the peaks and the times of launches are the (geometric) means over the
measured GPUs. All-reduces over NVLink keep their latency, and what grows with the bytes scales with
the link; over PCIe they are a ring at the share that a PCIe GPU was measured to reach.

Does not know: models, or how coefficients are used. How far the rule is off is measured by
`benchmarks/fidelity.py` (`docs/fidelity.md`).
"""

from collections.abc import Iterable, Mapping
from functools import cache

import numpy as np

from .calibration import (
    Calibration,
    Efficiency,
    TransferTable,
    bundled_calibration,
    bundled_calibration_names,
)
from .hardware import GPUS, Gpu

# bytes of the knots of a table that a rule makes
_RULE_BYTES = tuple(float(2**i) for i in range(10, 30, 2))
# s, one all-reduce over PCIe through host memory, assumed
_PCIE_ALL_REDUCE_S = 20e-6
# share of the PCIe link that a ring reaches, by whether the group is a pair: 16 MB on L40S take
# 1.8 ms (2 GPUs), 13.6 (4) and 30 (8), aiconfigurator 0.12
_PCIE_PAIR_FRAC = 0.29
_PCIE_WIDE_FRAC = 0.045
# s and share of the link, one message between two GPUs: Vidur network tables, 10 us and 224 of
# 300 GB/s (A100), 341 of 450 (H100) at 64 MB
_SEND_S = 10e-6
_SEND_FRAC = 0.75
# GPUs of a group that tables are made for
_GROUPS = (2, 4, 8)


@cache
def calibration_of(gpu: Gpu) -> Calibration:
    """The bundled calibration of a GPU, or what its datasheet promises."""
    return bundled_calibration(gpu.name) or datasheet_calibration(gpu)


def datasheet_calibration(gpu: Gpu, known: Iterable[Calibration] | None = None) -> Calibration:
    """What the datasheet of a GPU promises, judged by calibrated GPUs (the bundled ones).

    Raises: `ValueError` when nothing is known.
    """
    if known is None:
        bundled = (bundled_calibration(name) for name in bundled_calibration_names())
        known = [entry for entry in bundled if entry is not None]
    known = [entry for entry in known if entry.gpu in GPUS]
    if not known:
        msg = "datasheet_calibration needs at least one calibration of a GPU of the catalogue"
        raise ValueError(msg)
    names = ", ".join(sorted({entry.gpu for entry in known}))
    return Calibration(
        gpu=gpu.name,
        efficiency=_mean_efficiency([entry.efficiency for entry in known]),
        all_reduce={group: _all_reduce(gpu, group, known) for group in _GROUPS},
        all_to_all={group: _all_to_all(gpu, group) for group in _GROUPS},
        send_recv=send_recv_table(gpu),
        sources=(f"datasheet of {gpu.name}; shares of peaks: mean of {names}",),
    )


def _mean_efficiency(known: list[Efficiency]) -> Efficiency:
    """Geometric mean of every coefficient; of those that may be 0 the arithmetic one."""
    values = {name: [getattr(entry, name) for entry in known] for name in Efficiency.names()}
    means = {
        name: float(np.exp(np.mean(np.log(each))) if min(each) > 0 else np.mean(each))
        for name, each in values.items()
    }
    return Efficiency(**means)


def _all_reduce(gpu: Gpu, group: int, known: list[Calibration]) -> TransferTable:
    """All-reduce of one group size."""
    if gpu.nvlink_bytes_per_s is None:
        share = _PCIE_PAIR_FRAC if group == 2 else _PCIE_WIDE_FRAC
        moved = 2.0 * (group - 1) / group / (share * gpu.pcie_bytes_per_s)
        seconds = [_PCIE_ALL_REDUCE_S + size * moved for size in _RULE_BYTES]
        return TransferTable(num_bytes=_RULE_BYTES, seconds=tuple(seconds))
    scaled = [
        _scaled(entry.all_reduce[group], GPUS[entry.gpu].link_bytes_per_s / gpu.link_bytes_per_s)
        for entry in known
        if group in entry.all_reduce and GPUS[entry.gpu].nvlink_bytes_per_s is not None
    ]
    if not scaled:
        moved = 2.0 * (group - 1) / group / (_SEND_FRAC * gpu.link_bytes_per_s)
        seconds = [_SEND_S + size * moved for size in _RULE_BYTES]
        return TransferTable(num_bytes=_RULE_BYTES, seconds=tuple(seconds))
    logs = np.mean([np.log(table.time_s(_RULE_BYTES)) for table in scaled], axis=0)
    return TransferTable(num_bytes=_RULE_BYTES, seconds=tuple(np.exp(logs)))


def _scaled(table: TransferTable, factor: float) -> TransferTable:
    """The same table with what exceeds its floor made longer by a factor."""
    floor_s = min(table.seconds)
    seconds = tuple(floor_s + factor * (value - floor_s) for value in table.seconds)
    return TransferTable(num_bytes=table.num_bytes, seconds=seconds)


def _all_to_all(gpu: Gpu, group: int) -> TransferTable:
    """Dispatch and combine: every GPU sends all but its own part, twice."""
    moved = 2.0 * (group - 1) / group / (_SEND_FRAC * gpu.link_bytes_per_s)
    seconds = [2 * group * _SEND_S / 2 + size * moved for size in _RULE_BYTES]
    return TransferTable(num_bytes=_RULE_BYTES, seconds=tuple(seconds))


def send_recv_table(gpu: Gpu) -> TransferTable:
    """One message between neighbours."""
    seconds = [_SEND_S + size / (_SEND_FRAC * gpu.link_bytes_per_s) for size in _RULE_BYTES]
    return TransferTable(num_bytes=_RULE_BYTES, seconds=tuple(seconds))


def group_table(tables: Mapping[int, TransferTable], group: int) -> TransferTable:
    """The table of a group size, or that of the nearest size scaled by what a ring moves."""
    if group in tables:
        return tables[group]
    nearest = min(tables, key=lambda size: (abs(size - group), size))
    ratio = (group - 1) / group / ((nearest - 1) / nearest)
    table = tables[nearest]
    return TransferTable(
        num_bytes=table.num_bytes, seconds=tuple(ratio * value for value in table.seconds)
    )
