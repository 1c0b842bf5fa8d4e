"""What a bundle says it was trained for, and whether this code means the same by it.

A policy acts on features and knobs by position, so a bundle is refused when the feature registry
or the knobs' names and bounds differ from those that it was trained with.

Does not know: weights, or the network they belong to (`bundle.py`).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ..env.knobs import BIAS_SCALE, KNOB_SPECS
from ..env.observation import ObservationLayout
from ..env.state.registry import registry_hash
from ..traces.errors import BundleError

FORMAT_VERSION = 1
CONFIG_NAME = "config.json"
RESTORE = "restore the directory as save_bundle wrote it"
SAVE_ANEW = "save the policy anew with this Trimtab"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobBounds:
    """What the weights take for granted about one knob."""

    name: str
    low: float
    high: float
    residual_scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleConfig:
    """Content of `config.json`."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    format_version: int
    registry_hash: str
    knobs: tuple[KnobBounds, ...]
    bias_scale: float
    base_knobs: dict[str, float]
    layout: ObservationLayout
    hidden_size: Annotated[int, Field(ge=1, le=4096)]
    weights_sha256: str
    trained_on: str
    versions: dict[str, str]


def bundle_error(root: Path, fault: str, advice: str) -> BundleError:
    """Return an error that says which bundle, what is wrong with it, and what to do."""
    return BundleError(f"bundle {str(root)!r}: {fault}; {advice}")


def knob_bounds() -> tuple[KnobBounds, ...]:
    """Return what this code's knobs are."""
    fields = KnobBounds.__slots__
    return tuple(KnobBounds(**{key: getattr(spec, key) for key in fields}) for spec in KNOB_SPECS)


def read_bytes(root: Path, name: str) -> bytes:
    """Return the content of a bundle's file.

    Raises: `BundleError` when it cannot be read.
    """
    try:
        return (root / name).read_bytes()
    except OSError as error:
        raise bundle_error(root, f"cannot read {name} ({error.strerror})", RESTORE) from error


def read_json(root: Path, name: str) -> dict[str, Any]:
    """Return the JSON object in a bundle's file.

    Raises: `BundleError` when it is none.
    """
    try:
        content = json.loads(read_bytes(root, name))
    except ValueError as error:
        raise bundle_error(root, f"{name} is not JSON: {error}", RESTORE) from error
    if not isinstance(content, dict):
        raise bundle_error(root, f"{name} is not a JSON object", RESTORE)
    return content


def read_config(root: Path) -> BundleConfig:
    """Return what a bundle says of itself; `check_fit` says whether that fits this code.

    Raises: `BundleError` when it cannot be read, or is of another format.
    """
    content = read_json(root, CONFIG_NAME)
    found = content.get("format_version")
    if found != FORMAT_VERSION:
        raise bundle_error(root, f"format_version is {found}, expected {FORMAT_VERSION}", SAVE_ANEW)
    try:
        return TypeAdapter(BundleConfig).validate_python(content)
    except ValidationError as error:
        faults = ", ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        raise bundle_error(root, f"{CONFIG_NAME}: {faults}", RESTORE) from error


def check_fit(root: Path, config: BundleConfig) -> None:
    """Refuse a bundle whose features or knobs are not those of this code."""
    facts: tuple[tuple[str, object, object], ...] = (
        ("feature registry", config.registry_hash, registry_hash()),
        ("number of knobs", len(config.knobs), len(KNOB_SPECS)),
        *(("knob", *pair) for pair in zip(config.knobs, knob_bounds(), strict=False)),
        ("number of base_knobs", len(config.base_knobs), len(KNOB_SPECS)),
        ("bias_scale", config.bias_scale, BIAS_SCALE),
    )
    for name, found, expected in facts:
        if found != expected:
            fault = f"{name} is {found}, this code has {expected}"
            raise bundle_error(root, fault, "train anew, or use the Trimtab that saved it")
