"""A run as tables: indicators of the whole, and what each replica did.

Does not know: how a run is made; the indicators are defined in `docs/metrics.md`.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from rich import box
from rich.table import Table

from ..env.energy_prices import JOULES_PER_KWH
from ..env.kpis import Kpis
from ..env.simulated_fleet import SimulatedFleet


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRow:
    """What one replica did in a run, its drain included."""

    name: str
    gpu: str
    num_requests: int
    """Requests that it was the last to hold."""
    busy_frac: float
    """Time in iterations over the time until the last request ended."""
    prompt_tokens: int
    """Prompt tokens computed, those computed anew included; cached ones are not."""
    output_tokens: int
    kv_peak_frac: float
    """Most KV pages held by running requests at once, over all its pages."""
    num_preemptions: int
    num_crashes: int
    energy_kwh: float


def replica_rows(fleet: SimulatedFleet) -> list[ReplicaRow]:
    """Return what each replica of a finished run did."""
    replicas, requests = fleet.arrays.replicas, fleet.requests
    span_s = float(np.nanmax(requests["finish_s"], initial=fleet.workload.span_s))
    held = requests["replica"][requests["replica"] >= 0]
    counts = np.bincount(held, minlength=replicas.size)
    return [
        ReplicaRow(
            name=spec.name,
            gpu=fleet.cluster.gpu_of(spec).name,
            num_requests=int(count),
            busy_frac=min(1.0, float(record["busy_s"]) / span_s) if span_s > 0 else 0.0,
            prompt_tokens=int(record["prefill_tokens"]),
            output_tokens=int(record["generated_tokens"]),
            kv_peak_frac=float(record["peak_pages"] / record["total_pages"]),
            num_preemptions=int(record["num_preemptions"]),
            num_crashes=int(record["num_crashes"]),
            energy_kwh=float(record["energy_j"]) / JOULES_PER_KWH,
        )
        for spec, record, count in zip(fleet.cluster.replicas, replicas, counts, strict=True)
    ]


def _table(*columns: str) -> Table:
    """A table whose columns, but the first, are numbers."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0, 0, 1))
    for place, name in enumerate(columns):
        justify: Literal["left", "right"] = "right" if place else "left"
        table.add_column(name, justify=justify, vertical="bottom", no_wrap=True)
    return table


def value_text(name: str, value: float) -> str:
    """Return the value of an indicator with its unit, told from the end of its name."""
    if not math.isfinite(value):
        return "-"
    if name.endswith("_frac"):
        return f"{100 * value:.1f} %"
    if name.endswith("_rps"):
        return f"{value:.2f} /s"
    if name.endswith("_per_kwh"):
        return f"{value:,.0f}"
    if name.endswith("_kwh"):
        return f"{value:.4f} kWh"
    if name.endswith("_s"):
        return f"{value:.2f} s" if value >= 1.0 else f"{1e3 * value:.1f} ms"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


def kpi_table(kpis: Kpis) -> Table:
    """Return the indicators of a run by their names."""
    table = _table("indicator", "value")
    for name, value in kpis.as_dict().items():
        table.add_row(name, value_text(name, value))
    return table


def replica_table(fleet: SimulatedFleet) -> Table:
    """Return what each replica did."""
    table = _table(
        *("replica", "re-\nquests", "busy\n%", "prompt\ntokens", "output\ntokens"),
        *("peak\nKV %", "pre-\nempt", "crash", "energy\nWh"),
    )
    for row in replica_rows(fleet):
        table.add_row(
            row.name,
            str(row.num_requests),
            f"{100 * row.busy_frac:.0f}",
            str(row.prompt_tokens),
            str(row.output_tokens),
            f"{100 * row.kv_peak_frac:.0f}",
            str(row.num_preemptions),
            str(row.num_crashes),
            f"{1e3 * row.energy_kwh:.1f}",
        )
    return table


def without_nan(content: Any) -> Any:
    """Return plain data with None for what is no finite number: JSON has no word for it."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
