"""Model files: YAML that names the sizes of one's own model.

The keys are the fields of `ModelProfile`, sizes as `config.json` has them; `latent` holds the sizes
of latent attention. Every fault of a file is reported at once, with key, value and nearest key.
Every `*.yaml` in `env/data/models/` is a model that `load_model` finds by its name.

Does not know: what the sizes mean (`model_shape.py`).
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ..traces.errors import ConfigError
from .config_file import (
    Entry,
    bundled_names,
    faults_message,
    file_path,
    read_yaml,
    validated,
)
from .hardware import unknown_name_message
from .model_profile import MODELS
from .model_shape import AttentionKind, LatentShape, ModelProfile


class _LatentEntry(Entry):
    """Sizes of latent attention."""

    query_rank: int = Field(ge=0)
    kv_rank: int = Field(ge=1)
    rope_dim: int = Field(ge=1)
    nope_dim: int = Field(ge=1)
    value_dim: int = Field(ge=1)


class _ModelFile(Entry):
    """Top level of a model file."""

    name: str = Field(min_length=1)
    num_layers: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    num_kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    has_tied_embeddings: bool
    total_params: int = Field(ge=1)
    expert_params: int = Field(default=0, ge=0)
    num_experts: int = Field(default=0, ge=0)
    experts_per_token: int = Field(default=0, ge=0)
    num_expert_layers: int | None = Field(default=None, ge=1)
    attention: Annotated[AttentionKind, Field(strict=False)] = AttentionKind.GQA
    window_tokens: int | None = Field(default=None, ge=1)
    num_window_layers: int | None = Field(default=None, ge=1)
    latent: _LatentEntry | None = None


def bundled_model_files() -> tuple[str, ...]:
    """Names of the model files that come with the package."""
    return bundled_names("model")


def read_model(path_or_name: str | Path) -> ModelProfile:
    """Read a model from a YAML file, or a bundled file by its name.

    Raises: `ConfigError` with every fault of the file: key path, value and nearest known key.
    """
    path = file_path("model", path_or_name)
    faults: list[str] = []
    file = validated(_ModelFile, read_yaml("model", path), "", faults)
    if file is None:
        raise ConfigError(faults_message("model", str(path), faults))
    values = {name: getattr(file, name) for name in _ModelFile.model_fields}
    if file.latent is not None:
        values["latent"] = LatentShape(**file.latent.model_dump())
    try:
        return ModelProfile(**values)
    except ValueError as error:
        raise ConfigError(faults_message("model", str(path), [str(error)])) from error


def load_model(path_or_name: str | Path) -> ModelProfile:
    """A model of the catalogue by its name, or from a YAML file; a file adds to the catalogue.

    Cluster files may then name it. Reading the same model again changes nothing.

    Raises: `ConfigError` for an unknown name, a faulty file, or one that would change a model that
    the catalogue has.
    """
    if str(path_or_name) in MODELS:
        return MODELS[str(path_or_name)]
    if not Path(path_or_name).is_file() and str(path_or_name) not in bundled_model_files():
        known = unknown_name_message("model", str(path_or_name), (*MODELS, *bundled_model_files()))
        msg = f"{known}; or give the path of a YAML file"
        raise ConfigError(msg)
    profile = read_model(path_or_name)
    known_profile = MODELS.get(profile.name)
    if known_profile is not None and asdict(known_profile) != asdict(profile):
        msg = (
            f"model file '{path_or_name}' names model {profile.name!r}, which the catalogue has "
            "with other sizes; choose another name"
        )
        raise ConfigError(msg)
    MODELS[profile.name] = profile
    return profile


MODEL_ENTRIES: dict[str, type[Entry]] = {"file": _ModelFile, "latent": _LatentEntry}
"""What a model file holds: its top level, and the mapping in it."""
