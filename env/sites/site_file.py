"""Files of sites: YAML with one entry a site, read strictly.

Does not know: how sites are drawn.
"""

from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from ...traces.atomic import replace_file
from ...traces.errors import ConfigError
from ..config_file import faults_message, read_yaml
from .site import Site

_SITES: TypeAdapter[list[Site]] = TypeAdapter(
    list[Site], config=ConfigDict(extra="forbid", arbitrary_types_allowed=False)
)


def sites_yaml(sites: Sequence[Site]) -> str:
    """Return sites as YAML."""
    content = {"sites": [_plain(asdict(site)) for site in sites]}
    return yaml.safe_dump(content, sort_keys=False, width=96)


def save_sites(path: str | Path, sites: Sequence[Site]) -> None:
    """Write sites to a file, whole or not at all."""
    replace_file(Path(path), sites_yaml(sites).encode())


def load_sites(path: str | Path) -> list[Site]:
    """Read sites from a file.

    Raises: `ConfigError` with every fault of the file.
    """
    content = read_yaml("site", Path(path))
    if not isinstance(content, dict) or list(content) != ["sites"]:
        msg = f"site file '{path}' must hold one key 'sites' with a list; `trimtab sites sample`"
        raise ConfigError(msg)
    try:
        return _SITES.validate_python(content["sites"])
    except ValidationError as error:
        faults = [
            f"sites{_place(one['loc'])}: {one['msg']}, got {one['input']!r}"
            for one in error.errors()
        ]
        raise ConfigError(faults_message("site", str(path), faults)) from None


def _place(keys: tuple[int | str, ...]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)


def _plain(value: Any) -> Any:
    """The value with strings for enumerations and lists for tuples."""
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
