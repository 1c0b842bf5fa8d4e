"""How every YAML file of this project is read: typed strictly, all faults reported at once.

Does not know: what a cluster, a model or a fault is.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from ..traces.errors import ConfigError
from .hardware import nearest_name, unknown_name_message

DATA_DIR = Path(__file__).parent / "data"
_PLURALS = {"policy": "policies"}

_UNKNOWN_NAME: Literal["unknown_name"] = "unknown_name"


def read_yaml(kind: str, path: Path) -> object:
    """Return the content of a YAML file.

    Raises: `ConfigError` when it cannot be read.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        msg = f"{kind} file '{path}' cannot be read as YAML: {error}"
        raise ConfigError(msg) from error


def _bundled_folder(kind: str) -> Path:
    return DATA_DIR / _PLURALS.get(kind, f"{kind}s")


def bundled_names(kind: str) -> tuple[str, ...]:
    """Names of the files of a kind that come with the package."""
    return tuple(sorted(path.stem for path in _bundled_folder(kind).glob("*.yaml")))


def file_path(kind: str, path_or_name: str | Path) -> Path:
    """Return the file that a path or a bundled name means.

    Raises: `ConfigError` when there is neither.
    """
    path = Path(path_or_name)
    if path.is_file():
        return path
    names = bundled_names(kind)
    if str(path_or_name) in names:
        return _bundled_folder(kind) / f"{path_or_name}.yaml"
    message = unknown_name_message(kind, str(path_or_name), names)
    msg = f"{message}; or give the path of a YAML file"
    raise ConfigError(msg)


def known_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The name itself; for pydantic, a fault that names the nearest when it is not known."""
    if name not in known:
        code, template = _UNKNOWN_NAME, "{text}"
        raise PydanticCustomError(code, template, {"text": unknown_name_message(kind, name, known)})
    return name


class Entry(BaseModel):
    """Base of what a cluster file may hold: typed strictly, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


EntryT = TypeVar("EntryT", bound=Entry)


def validated(kind: type[EntryT], content: object, path: str, faults: list[str]) -> EntryT | None:
    """The content as an entry of this kind, or None with its faults appended."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        faults += [_fault_text(kind, path, detail) for detail in error.errors()]
        return None


def entries(
    kind: type[EntryT], items: Sequence[Any], key: str, faults: list[str]
) -> dict[str, EntryT]:
    """The valid entries of a list by their key path; the faults of the others are appended."""
    paths = [f"{key}[{index}]" for index in range(len(items))]
    checked = {
        path: validated(kind, item, path, faults) for path, item in zip(paths, items, strict=True)
    }
    return {path: entry for path, entry in checked.items() if entry is not None}


def _fault_text(kind: type[BaseModel], path: str, detail: ErrorDetails) -> str:
    """One fault: key path, what is wrong, the value, what was expected."""
    key_path, text = _keyed_fault(kind, path, detail)
    return f"{key_path}: {text}"


def keyed_faults(
    kind: type[BaseModel], error: ValidationError, path: str = ""
) -> list[tuple[str, str]]:
    """The faults of an entry, each as its key path and what is wrong."""
    return [_keyed_fault(kind, path, detail) for detail in error.errors()]


def _keyed_fault(kind: type[BaseModel], path: str, detail: ErrorDetails) -> tuple[str, str]:
    keys = [str(part) for part in detail["loc"]]
    key_path = ".".join(part for part in (path, *keys) if part) or "file"
    known = list(_holder(kind, keys).model_fields)
    if detail["type"] == "extra_forbidden":
        nearest = nearest_name(keys[-1], known)
        hint = f"did you mean {nearest!r}?" if nearest else f"known keys: {', '.join(known)}"
        return key_path, f"unknown key with value {detail['input']!r}; {hint}"
    if detail["type"] == "missing":
        return key_path, "key is missing; add it"
    if detail["type"] == "model_type":
        return key_path, f"must be a mapping of {', '.join(known)}, got {detail['input']!r}"
    text = detail["msg"]
    is_unknown = detail["type"] == _UNKNOWN_NAME
    return key_path, text if is_unknown else f"{text}, got {detail['input']!r}"


def _holder(kind: type[BaseModel], keys: Sequence[str]) -> type[BaseModel]:
    """The entry that holds the last of some keys: `kind` itself, or one in it."""
    for key in keys[:-1]:
        inner = kind.model_fields[key].annotation if key in kind.model_fields else None
        found = [each for each in (inner, *get_args(inner)) if isinstance(each, type)]
        entry = next((each for each in found if issubclass(each, BaseModel)), None)
        if entry is None:
            return kind
        kind = entry
    return kind


def faults_message(kind: str, source: str, faults: Sequence[str]) -> str:
    """All faults of a file in one message, each on its line."""
    lines = "".join(f"\n  - {fault}" for fault in faults)
    return f"{kind} '{source}' has {len(faults)} fault(s):{lines}"
