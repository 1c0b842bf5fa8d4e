"""Fault files: YAML that says which hidden trouble a fleet has, how often and how large.

The keys are those of `FaultConfig` and its groups; what is left out stays off. Every fault of a
file is reported at once, with the path of its key. Every `*.yaml` in `env/data/faults/` is a
profile that `load_faults` finds by its name.

Does not know: what the settings mean (`simulator/faults/config.py`).
"""

from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import Field, create_model

from ..traces.errors import ConfigError
from .config_file import (
    Entry,
    bundled_names,
    faults_message,
    file_path,
    read_yaml,
    validated,
)
from .simulator.faults import FaultConfig


class FaultFile(Entry):
    """What a fault file says beside its settings."""

    name: str = Field(min_length=1)
    """Name of the profile."""
    source: str = ""
    """What its numbers were fitted on or taken from."""
    licence: str = ""
    """Terms of that source."""


def bundled_fault_names() -> tuple[str, ...]:
    """Names of the fault profiles that come with the package."""
    return bundled_names("fault")


def groups() -> dict[str, type]:
    """Return the groups of `FaultConfig` by key."""
    found: dict[str, Any] = {
        entry.name: entry.default_factory
        for entry in fields(FaultConfig)
        if entry.default_factory is not MISSING
    }
    return found


@cache
def entry_of(kind: type, base: type[Entry]) -> type[Entry]:
    """Return the file entry of a settings dataclass; its groups are checked one by one."""
    hints, members = get_type_hints(kind, include_extras=True), {}
    for entry in fields(kind):
        is_group = entry.default_factory is not MISSING
        members[entry.name] = (Any, {}) if is_group else (hints[entry.name], entry.default)
    model: Any = create_model
    made: type[Entry] = model(f"{kind.__name__}Entry", __base__=base, **members)
    return made


def load_faults(path_or_name: str | Path) -> FaultConfig:
    """Read hidden trouble from a YAML file, or a bundled profile by its name.

    Raises: `ConfigError` with every fault of the file: key path, value and nearest known key.
    """
    path = file_path("fault", path_or_name)
    faults: list[str] = []
    file = validated(entry_of(FaultConfig, FaultFile), read_yaml("fault", path), "", faults)
    if file is None:
        raise ConfigError(faults_message("fault", str(path), faults))
    settings = {
        entry.name: getattr(file, entry.name)
        for entry in fields(FaultConfig)
        if entry.name not in groups()
    }
    for key, kind in groups().items():
        group = validated(entry_of(kind, Entry), getattr(file, key), key, faults)
        if group is not None:
            settings[key] = kind(
                **{name: getattr(group, name) for name in type(group).model_fields}
            )
    if faults:
        raise ConfigError(faults_message("fault", str(path), faults))
    return FaultConfig(**settings)
