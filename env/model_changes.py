"""What differs between two models, in words.

Does not know: which of them is the newer.
"""

from dataclasses import fields
from typing import Any

from .hardware import Precision
from .kv_curve import KvCurve
from .model_shape import BatchRange, LatentShape, ModelProfile

_FILE_KEYS = {"kv_bytes": "kv_bytes_per_token"}


def changes(older: ModelProfile, newer: ModelProfile) -> tuple[str, ...]:
    """One line for each key that differs, then what that does to weights and KV."""
    lines = []
    for field in fields(ModelProfile):
        before, after = getattr(older, field.name), getattr(newer, field.name)
        if field.name not in ("name", "version") and before != after:
            key = _FILE_KEYS.get(field.name, field.name)
            lines.append(f"{key}: {_said(before)} -> {_said(after)}{_by(before, after)}")
    for label, unit, figures in (
        ("weights in 16 bits", "GB", [_weight_gb(each) for each in (older, newer)]),
        ("KV of a token", "KiB", [_kv_kib(each) for each in (older, newer)]),
    ):
        before, after = figures
        if before != after:
            lines.append(f"{label}: {before:.4g} -> {after:.4g} {unit}{_by(before, after)}")
    return tuple(lines)


def _weight_gb(profile: ModelProfile) -> float:
    return profile.weight_bytes(Precision.BF16) / 1e9


def _kv_kib(profile: ModelProfile) -> float:
    return profile.kv_bytes_per_token(Precision.BF16) / 1024


def _said(value: Any) -> str:
    if value is None or value in ("", ()):
        return "none"
    if isinstance(value, KvCurve):
        points = ", ".join(f"{total:g} at {tokens}" for tokens, total in value.points)
        exact = f" (pages by {value.reference_tokens})" if value.reference_tokens else ""
        return f"{value.first_slope:g}{exact}" if len(value.points) == 1 else f"{points}{exact}"
    if isinstance(value, BatchRange):
        return f"{value.min} to {value.max}"
    if isinstance(value, LatentShape):
        return f"latent of {value.cached_values} values"
    if isinstance(value, tuple):
        return ", ".join(str(each) for each in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _by(before: Any, after: Any) -> str:
    """The change in percent, of numbers."""
    is_count = all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in (before, after)
    )
    return f" ({100 * (after / before - 1):+.3g} %)" if is_count and before else ""
