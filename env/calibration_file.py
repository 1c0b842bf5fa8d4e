"""Calibration files: JSON, written whole or not at all, every fault of one reported at once.

Every `*.json` in `env/data/calibrations/` is the calibration of the GPU that it is named after.

Does not know: what the numbers mean (`calibration.py`).
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

from ..traces.errors import ConfigError
from .calibration import Calibration, Efficiency, ErrorRow, TransferTable
from .config_file import DATA_DIR, faults_message
from .hardware import nearest_name

CALIBRATION_DIR = DATA_DIR / "calibrations"
FORMAT = "trimtab-calibration-1"


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration as JSON; the file appears whole or not at all."""
    content = {
        "format": FORMAT,
        "gpu": calibration.gpu,
        "sources": list(calibration.sources),
        "efficiency": {
            name: float(f"{value:.6g}") for name, value in asdict(calibration.efficiency).items()
        },
        "all_reduce": {str(k): _table_json(t) for k, t in calibration.all_reduce.items()},
        "all_to_all": {str(k): _table_json(t) for k, t in calibration.all_to_all.items()},
        "send_recv": calibration.send_recv and _table_json(calibration.send_recv),
        "errors": [asdict(row) for row in calibration.errors],
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(_compact_json(content), encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_calibration(path: str | Path) -> Calibration:
    """Read a calibration from a JSON file.

    Raises: `ConfigError` with every fault of the file: key, value and nearest known key.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        msg = f"calibration file '{path}' cannot be read as JSON: {error}"
        raise ConfigError(msg) from error
    faults: list[str] = []
    calibration = _parsed(content, faults)
    if calibration is None:
        raise ConfigError(faults_message("calibration", str(path), faults))
    return calibration


def bundled_calibration_names() -> tuple[str, ...]:
    """Names of the GPUs whose calibration comes with the package."""
    return tuple(sorted(path.stem for path in CALIBRATION_DIR.glob("*.json")))


@cache
def bundled_calibration(gpu_name: str) -> Calibration | None:
    """The calibration of a GPU that comes with the package, or None."""
    path = CALIBRATION_DIR / f"{gpu_name}.json"
    return load_calibration(path) if path.is_file() else None


def _table_json(table: TransferTable) -> dict[str, list[float]]:
    return {
        "num_bytes": [float(f"{value:.6g}") for value in table.num_bytes],
        "seconds": [float(f"{value:.5g}") for value in table.seconds],
    }


def _compact_json(content: Mapping[str, Any]) -> str:
    """JSON with one line for each entry of the inner lists and mappings."""
    lines = []
    for key, value in content.items():
        if isinstance(value, dict) and value:
            inner = [f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()]
            lines.append(f"  {json.dumps(key)}: {{\n" + ",\n".join(inner) + "\n  }")
        elif isinstance(value, list) and value:
            inner = [f"    {json.dumps(entry)}" for entry in value]
            lines.append(f"  {json.dumps(key)}: [\n" + ",\n".join(inner) + "\n  ]")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


_KEYS = (
    "format",
    "gpu",
    "sources",
    "efficiency",
    "all_reduce",
    "all_to_all",
    "send_recv",
    "errors",
)


def _parsed(content: object, faults: list[str]) -> Calibration | None:
    """The calibration of a file's content, or None with its faults appended."""
    if not isinstance(content, dict):
        faults.append(f"file: must be a mapping of {', '.join(_KEYS)}, got {content!r}")
        return None
    _unknown_keys(content, _KEYS, "", faults)
    if content.get("format") != FORMAT:
        faults.append(f"format: must be {FORMAT!r}, got {content.get('format')!r}")
    if not isinstance(content.get("gpu"), str):
        faults.append(f"gpu: must be the name of a GPU, got {content.get('gpu')!r}")
    efficiency = _built(Efficiency, content.get("efficiency"), "efficiency", faults)
    groups = [_groups(content.get(key, {}), key, faults) for key in ("all_reduce", "all_to_all")]
    send_recv = None
    if content.get("send_recv") is not None:
        send_recv = _table(content["send_recv"], "send_recv", faults)
    rows = [
        _built(ErrorRow, row, f"errors[{i}]", faults)
        for i, row in enumerate(content.get("errors", []))
    ]
    if faults or efficiency is None:
        return None
    return Calibration(
        gpu=content["gpu"],
        efficiency=efficiency,
        all_reduce=groups[0],
        all_to_all=groups[1],
        send_recv=send_recv,
        sources=tuple(str(source) for source in content.get("sources", [])),
        errors=tuple(row for row in rows if row is not None),
    )


def _unknown_keys(
    content: Mapping[str, Any], known: tuple[str, ...], path: str, faults: list[str]
) -> None:
    for key in content:
        if key not in known:
            nearest = nearest_name(str(key), known)
            hint = f"did you mean {nearest!r}?" if nearest else f"known keys: {', '.join(known)}"
            faults.append(f"{path}{key}: unknown key with value {content[key]!r}; {hint}")


def _built(kind: Any, content: object, path: str, faults: list[str]) -> Any:
    """A dataclass of plain values from a mapping, or None with its faults appended."""
    known = tuple(entry.name for entry in fields(kind))
    if not isinstance(content, dict):
        faults.append(f"{path}: must be a mapping of {', '.join(known)}, got {content!r}")
        return None
    before = len(faults)
    _unknown_keys(content, known, f"{path}.", faults)
    for entry in fields(kind):
        value = content.get(entry.name)
        types: tuple[Any, ...] = (int, float) if entry.type is float else (entry.type,)
        if entry.name not in content:
            faults.append(f"{path}.{entry.name}: key is missing; add it")
        elif not isinstance(value, types) or (isinstance(value, bool) and entry.type is not bool):
            expected = entry.type.__name__  # type: ignore[union-attr]
            faults.append(f"{path}.{entry.name}: must be a {expected}, got {value!r}")
    if len(faults) > before:
        return None
    try:
        return kind(**content)
    except ValueError as error:
        faults.append(f"{path}: {error}")
        return None


def _groups(content: object, path: str, faults: list[str]) -> dict[int, TransferTable]:
    """Transfer tables by GPUs of the group."""
    if not isinstance(content, dict):
        faults.append(f"{path}: must be a mapping of numbers of GPUs to tables, got {content!r}")
        return {}
    tables = {}
    for key, entry in content.items():
        if not str(key).isdigit() or int(key) < 2:
            faults.append(f"{path}.{key}: key must be a number of GPUs, at least 2")
            continue
        table = _table(entry, f"{path}.{key}", faults)
        if table is not None:
            tables[int(key)] = table
    return tables


def _table(content: object, path: str, faults: list[str]) -> TransferTable | None:
    """One transfer table, or None with its faults appended."""
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) and all(isinstance(v, int | float) for v in content[key])
        for key in ("num_bytes", "seconds")
    ):
        faults.append(f"{path}: must hold lists of numbers num_bytes and seconds, got {content!r}")
        return None
    _unknown_keys(content, ("num_bytes", "seconds"), f"{path}.", faults)
    try:
        return TransferTable(
            num_bytes=tuple(content["num_bytes"]), seconds=tuple(content["seconds"])
        )
    except ValueError as error:
        faults.append(f"{path}: {error}")
        return None
