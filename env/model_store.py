"""A directory of models in versions: `NAME/VERSION.yaml`, each written once and never changed.

The newest version is what a bare name means. Writers in several processes need no lock: a version
appears whole, once, or not at all. A file without a version is given the next whole number.

Does not know: who uploads; the catalogue in memory is only asked whether it disagrees.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from ..traces.atomic import write_new_file
from ..traces.errors import ConfigError
from .config_file import bundled_names, faults_message
from .file_fault import Fault
from .hardware import unknown_name_message
from .model_changes import changes
from .model_entry import Reading, read_text
from .model_profile import MODELS, SHIPPED_MODELS, add_model, known_versions
from .model_shape import ModelProfile
from .model_version import is_version, next_version, split_key, version_order

# The variable that names the directory; without it, the user's own.
STORE_VARIABLE = "TRIMTAB_MODEL_STORE"
# Names become directories.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)


class Outcome(StrEnum):
    """What became of an upload."""

    CREATED = "created"  # a new version
    IDENTICAL = "identical"  # this version was there, the same
    CONFLICT = "conflict"  # this version was there, with other content
    REFUSED = "refused"  # the file has faults


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An upload and what became of it."""

    outcome: Outcome
    """What became of it."""
    profile: ModelProfile | None = None
    """The model as it is stored, or would have been; None if its file has faults."""
    faults: tuple[Fault, ...] = ()
    """What is wrong with the file, or what it is in conflict with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVersion:
    """One version of a model."""

    profile: ModelProfile
    """The model."""
    stored_at: datetime
    """When it was written, UTC."""
    changes: tuple[str, ...]
    """What differs from the version before, in words; empty for the first."""


class ModelStore:
    """Models in versions, in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def names(self) -> tuple[str, ...]:
        """Names of the models, sorted."""
        if not self.directory.is_dir():
            return ()
        found = [path.name for path in self.directory.iterdir() if _NAME.fullmatch(path.name)]
        return tuple(sorted(name for name in found if self.versions(name)))

    def versions(self, name: str) -> tuple[str, ...]:
        """Versions of a model, the oldest first; none for an unknown name."""
        if not _NAME.fullmatch(name):
            return ()
        found = [path.stem for path in (self.directory / name).glob("[0-9]*.yaml")]
        return tuple(sorted(filter(is_version, found), key=version_order))

    def model_keys(self) -> tuple[str, ...]:
        """`name@version` of every model."""
        return tuple(f"{name}@{each}" for name in self.names() for each in self.versions(name))

    def find(self, key: str) -> str | None:
        """The stored key that `name` (the newest) or `name@version` means, or None."""
        name, version = split_key(key)
        versions = self.versions(name)
        if version is None:
            version = versions[-1] if versions else None
        return f"{name}@{version}" if version in versions else None

    def read(self, key: str) -> ModelProfile:
        """The model of a key; a bare name means the newest version.

        Raises: `ConfigError` when there is none, or when its file was damaged.
        """
        return _profile(self._path(key))

    def text(self, key: str) -> bytes:
        """The stored file of a key.

        Raises: `ConfigError` when there is none.
        """
        return self._path(key).read_bytes()

    def tag(self, key: str) -> str:
        """A text that differs between files of different content."""
        return hashlib.sha256(self.text(key)).hexdigest()[:32]

    def history(self, name: str) -> tuple[StoredVersion, ...]:
        """All versions of a model, the oldest first, with what each changed.

        Raises: `ConfigError` when there is none of this name.
        """
        self._path(name)
        return tuple(self._history(name))

    def difference(self, older: str, newer: str) -> tuple[str, ...]:
        """What differs between two stored models, in words.

        Raises: `ConfigError` when one of them is not there.
        """
        return changes(self.read(older), self.read(newer))

    def add(self, text: str | bytes, *, is_json: bool = False) -> Upload:
        """Check a model file and store it as a new version, or say why not."""
        reading = read_text(text, is_json=is_json)
        if reading.profile is None:
            return Upload(outcome=Outcome.REFUSED, faults=reading.faults)
        if not _NAME.fullmatch(reading.profile.name):
            text = (
                "a stored model's name has letters, digits, dots, dashes and underscores, at most "
                f"100, got {reading.profile.name!r}; rename it"
            )
            return Upload(outcome=Outcome.REFUSED, faults=(Fault("name", text),))
        return self._add(reading.profile, reading)

    def publish(self, key: str) -> ModelProfile:
        """Put a stored model into the catalogue of this process.

        Raises: `ConfigError` for a damaged file, or one that the catalogue has with other sizes.
        """
        return add_model(self.read(key), f"model store '{self.directory}'")

    def _add(self, profile: ModelProfile, reading: Reading) -> Upload:
        while True:
            numbered = profile if profile.version else self._numbered(profile)
            version = str(numbered.version)
            known = self._known(numbered)
            if known is not None and (profile.version or known == numbered):
                return _compared(known, numbered)
            if known is not None:
                continue  # another writer took this number; the next look sees a newer one
            content = _with_version(reading.content, version)
            if write_new_file(self.directory / numbered.name / f"{version}.yaml", content):
                return Upload(outcome=Outcome.CREATED, profile=numbered)
            # Another writer was first; look at what it wrote.

    def _numbered(self, profile: ModelProfile) -> ModelProfile:
        """The profile as the newest version if that is the same model, else as the next."""
        versions = self.versions(profile.name)
        if versions:
            same = _versioned(profile, versions[-1])
            if self.read(f"{profile.name}@{versions[-1]}") == same:
                return same
        return _versioned(profile, next_version((*versions, *known_versions(profile.name))))

    def _known(self, profile: ModelProfile) -> ModelProfile | None:
        """What the store or the catalogue has under this key."""
        path = self.directory / profile.name / f"{profile.version}.yaml"
        if path.is_file():
            return _profile(path)
        known = MODELS.get(profile.key)
        return None if known == profile else known

    def _history(self, name: str) -> Iterator[StoredVersion]:
        before: ModelProfile | None = None
        for version in self.versions(name):
            path = self._path(f"{name}@{version}")
            profile = _profile(path)
            yield StoredVersion(
                profile=profile,
                stored_at=datetime.fromtimestamp(path.stat().st_mtime, tz=UTC),
                changes=() if before is None else changes(before, profile),
            )
            before = profile

    def _path(self, key: str) -> Path:
        found = self.find(key)
        if found is None:
            known = unknown_name_message("model", key, (*self.names(), *self.model_keys()))
            msg = f"store '{self.directory}' has no such model: {known}"
            raise ConfigError(msg)
        name, version = split_key(found)
        return self.directory / name / f"{version}.yaml"


def default_store() -> ModelStore:
    """The store that names are looked up in beyond the catalogue."""
    named = os.environ.get(STORE_VARIABLE)
    if named:
        return ModelStore(Path(named))
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return ModelStore(Path(data) / "trimtab" / "models")


def is_shadowed(profile: ModelProfile) -> bool:
    """Whether the bare name means a model that comes with the package."""
    return profile.name in SHIPPED_MODELS or profile.name in bundled_model_files()


def bundled_model_files() -> tuple[str, ...]:
    """Names of the model files that come with the package."""
    return bundled_names("model")


def _versioned(profile: ModelProfile, version: str) -> ModelProfile:
    values = {name: getattr(profile, name) for name in profile.__dataclass_fields__}
    return ModelProfile(**{**values, "version": version})


def _with_version(content: Any, version: str) -> bytes:
    """A file's content as it is stored."""
    ordered = {"name": content["name"], "version": version, **content}
    ordered["version"] = version
    return yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=96).encode()


def _profile(path: Path) -> ModelProfile:
    """The model of a stored file.

    Raises: `ConfigError` when it was damaged.
    """
    reading = read_text(path.read_bytes())
    if reading.profile is None:
        raise ConfigError(
            faults_message("model", str(path), [str(each) for each in reading.faults])
        )
    return reading.profile


def _compared(known: ModelProfile, profile: ModelProfile) -> Upload:
    """An upload of a key that is taken."""
    if known == profile:
        return Upload(outcome=Outcome.IDENTICAL, profile=known)
    listed = "; ".join(changes(known, profile))
    text = f"{profile.version} is there with other content ({listed}); choose a newer version"
    return Upload(outcome=Outcome.CONFLICT, profile=profile, faults=(Fault("version", text),))
