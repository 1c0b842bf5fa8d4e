"""Key files: YAML that says whose API key is whose. Keys stand there as their SHA-256 only.

    keys:
      - sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
        tenant: shop
        priority: interactive   # or batch (default interactive)
        ttft_s: 0.5             # limit of requests that name none (default: the gateway's)
        tpot_s: 0.05            # likewise
        weight: 2               # worth of a request (default 1)
        models: [tiny]          # may ask for these only (default: all)
        may_name_flow: false    # whether a header may name who the request is for (default false)

`python -c "import hashlib,getpass;print(hashlib.sha256(getpass.getpass().encode()).hexdigest())"`
prints the hash of a key.

Does not know: HTTP.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ...env.config_file import Entry, entries, faults_message, read_yaml, validated
from ...traces.errors import ConfigError
from .tenants import KeyedTenants, Tenant

_PRIORITIES = {"interactive": 0, "batch": 1}


class _File(Entry):
    """Top level of a key file."""

    keys: list[Any] = Field(min_length=1)
    """One entry for each key."""


class _KeyEntry(Entry):
    """One item of `keys`."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the key, in hexadecimal."""
    tenant: str = Field(min_length=1)
    """Who has it."""
    priority: Literal["interactive", "batch"] = "interactive"
    """Of requests that name no objective."""
    ttft_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Limit on TTFT of requests that name none, s."""
    tpot_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The same on TPOT, s."""
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Worth of a request."""
    models: list[str] | None = Field(default=None, min_length=1)
    """Model names that it may ask for."""
    may_name_flow: bool = False
    """Whether a header may name who a request is for."""


def read_keys(path: Path, everybody: Tenant) -> KeyedTenants:
    """Read a key file; `everybody` has the limits of tenants that have none of their own.

    Raises: `ConfigError` with every fault of the file.
    """
    faults: list[str] = []
    file = validated(_File, read_yaml("key", path), "", faults)
    if file is None:
        raise ConfigError(faults_message("key", str(path), faults))
    found = entries(_KeyEntry, file.keys, "keys", faults)
    seen: set[str] = set()
    for place, entry in found.items():
        if entry.sha256 in seen:
            faults.append(f"{place}.sha256: stands here twice; give each tenant a key of its own")
        seen.add(entry.sha256)
    if faults:
        raise ConfigError(faults_message("key", str(path), faults))
    return KeyedTenants([(entry.sha256, _tenant(entry, everybody)) for entry in found.values()])


def _tenant(entry: _KeyEntry, everybody: Tenant) -> Tenant:
    return Tenant(
        name=entry.tenant,
        priority=_PRIORITIES[entry.priority],
        ttft_slo_s=everybody.ttft_slo_s if entry.ttft_s is None else entry.ttft_s,
        tpot_slo_s=everybody.tpot_slo_s if entry.tpot_s is None else entry.tpot_s,
        weight=entry.weight,
        models=None if entry.models is None else frozenset(entry.models),
        may_name_flow=entry.may_name_flow,
    )
