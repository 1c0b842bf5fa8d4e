"""The report of an evaluation: a page to read, a picture to show, and every number as JSON.

Does not know: how the page and the picture are drawn (`report_html.py`, `report_png.py`).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..agents.evaluation import QUANTILES, Evaluation, PolicyResult
from ..env.simulator.workload import ServiceLevels
from .report_html import html_page
from .report_png import png_bytes
from .summary import differences, goodput, headline, limits
from .table import mean_kpi

HTML_NAME = "report.html"
PNG_NAME = "report.png"
JSON_NAME = "evaluation.json"
DEFAULT_TTFT_SLOS_S = ServiceLevels().ttft_slo_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportPaths:
    """Files of a written report."""

    html: Path
    png: Path
    json: Path


def write_report(
    evaluation: Evaluation,
    out_dir: str | Path,
    *,
    ttft_slos_s: Sequence[float] = DEFAULT_TTFT_SLOS_S,
    settings: Mapping[str, Any] | None = None,
) -> ReportPaths:
    """Write the report into a directory, made if need be; each file appears whole or not at all.

    `ttft_slos_s` are the limits that the figures mark, the most urgent first; `settings` is what
    made the evaluation, kept with the numbers.
    """
    root = Path(out_dir)
    root.mkdir(parents=True, exist_ok=True)
    paths = ReportPaths(html=root / HTML_NAME, png=root / PNG_NAME, json=root / JSON_NAME)
    content = json.dumps(as_json(evaluation, settings=settings), indent=2, allow_nan=False)
    _write(paths.json, f"{content}\n".encode())
    _write(paths.png, png_bytes(evaluation, ttft_slos_s))
    _write(paths.html, html_page(evaluation, ttft_slos_s).encode())
    return paths


def as_json(evaluation: Evaluation, *, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return every number of an evaluation as JSON has them; what is not finite is None."""
    content = {
        "headline": headline(evaluation),
        "limits": limits(evaluation),
        "is_live": evaluation.is_live,
        "trimtab_version": __version__,
        "settings": dict(settings or {}),
        "scenario": evaluation.scenario,
        "part": str(evaluation.part),
        "load_frac": evaluation.load_frac,
        "rate_rps": evaluation.rate_rps,
        "seed": evaluation.seed,
        "num_workloads": evaluation.num_workloads,
        "quantiles": QUANTILES,
        "policies": {result.name: _policy(result) for result in evaluation.policies},
        "goodput_differences": [asdict(each) for each in differences(evaluation)],
        "goodput_by_load": evaluation.goodput_by_load,
        "knob_tracks": [asdict(track) for track in evaluation.knob_tracks],
    }
    plain: dict[str, Any] = _plain(content)
    return plain


def _policy(result: PolicyResult) -> dict[str, Any]:
    kpis = [kpis.as_dict() for kpis in result.kpis]
    return {
        "goodput_frac": asdict(goodput(result)),
        "mean": {name: mean_kpi(result, name) for name in kpis[0]},
        "workloads": kpis,
        "ttft_quantiles_s": result.ttft_quantiles_s,
    }


def _plain(value: Any) -> Any:
    """The value in JSON's own types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _write(path: Path, content: bytes) -> None:
    """Write under a temporary name and rename, so that nobody reads half a file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
