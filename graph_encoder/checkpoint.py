"""A trained encoder as a directory: weights, and what they were trained for. No pickle.

    encoder.safetensors  weights
    config.json          sizes, registry hash, training

Columns go by position, so weights are refused when the feature registry is not the one that they
were trained with.

Does not know: how the encoder was trained, or what its vectors are used for.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ..env.state.registry import registry_hash
from ..traces.atomic import write_directory
from ..traces.errors import BundleError
from .attention_encoder import AttentionEncoder

FORMAT_VERSION = 1
WEIGHTS_NAME = "encoder.safetensors"
CONFIG_NAME = "config.json"
_RESTORE = "restore the directory as it was saved"
_TRAIN_ANEW = "train it anew with `trimtab pretrain`"

_Size = Annotated[int, Field(ge=1, le=4096)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    """Content of `config.json`."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    format_version: int
    registry_hash: str
    hidden_size: _Size
    num_layers: _Size
    num_heads: _Size
    weights_sha256: str
    training: dict[str, Any]


def save_encoder(
    target: Path, encoder: AttentionEncoder, training: Mapping[str, Any], *, overwrite: bool = False
) -> None:
    """Save an encoder over the whole registry; the directory appears whole or not at all.

    Args:
        target: directory to make.
        encoder: with the fleet's schema and pools.
        training: what it was trained on and how well, as plain JSON.
        overwrite: replace an encoder that is there; never anything else.

    Raises:
        BundleError: the target exists and may not be replaced.
        ValueError: a weight is not finite, or `training` is no JSON.
    """
    if target.exists() and not overwrite:
        raise _error(target, "exists", "choose another path or pass overwrite=True")
    if target.exists() and not (target / WEIGHTS_NAME).is_file():
        raise _error(target, "exists and is no encoder", "choose another path or remove it")
    tensors = {name: x.detach().contiguous() for name, x in encoder.state_dict().items()}
    for name, tensor in sorted(tensors.items()):
        if not torch.isfinite(tensor).all():
            msg = f"weight '{name}' is not finite; training diverged, save an earlier encoder"
            raise ValueError(msg)
    weights = save_tensors(tensors)
    config = _Config(
        format_version=FORMAT_VERSION,
        registry_hash=registry_hash(),
        hidden_size=encoder.hidden_size,
        num_layers=len(encoder.layers),
        num_heads=encoder.num_heads,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        training=dict(training),
    )
    text = json.dumps(asdict(config), indent=2, allow_nan=False) + "\n"
    write_directory(target, {WEIGHTS_NAME: weights, CONFIG_NAME: text.encode()})


def load_encoder(source: Path) -> AttentionEncoder:
    """Return a saved encoder, ready to run.

    Raises:
        BundleError: a file is missing or damaged, or the encoder does not fit this code.
    """
    config = _read_config(source)
    if config.registry_hash != registry_hash():
        fault = f"feature registry is {config.registry_hash}, this code has {registry_hash()}"
        raise _error(source, fault, _TRAIN_ANEW)
    content = _read(source, WEIGHTS_NAME)
    found = hashlib.sha256(content).hexdigest()
    if found != config.weights_sha256:
        fault = f"{WEIGHTS_NAME} has sha256 {found}, expected {config.weights_sha256}"
        raise _error(source, fault, _RESTORE)
    encoder = AttentionEncoder(
        hidden_size=config.hidden_size, num_layers=config.num_layers, num_heads=config.num_heads
    )
    try:
        encoder.load_state_dict(load_tensors(content))
    except (SafetensorError, RuntimeError) as error:
        raise _error(source, f"{WEIGHTS_NAME} does not fit: {error}", _TRAIN_ANEW) from error
    return encoder.eval()


def _read(source: Path, name: str) -> bytes:
    try:
        return (source / name).read_bytes()
    except OSError as error:
        raise _error(source, f"{name} cannot be read: {error.strerror}", _RESTORE) from error


def _read_config(source: Path) -> _Config:
    try:
        content = json.loads(_read(source, CONFIG_NAME))
        version = content.get("format_version")
    except (ValueError, AttributeError) as error:
        raise _error(source, f"{CONFIG_NAME} is no JSON object: {error}", _RESTORE) from error
    if version != FORMAT_VERSION:
        fault = f"format_version is {version}, expected {FORMAT_VERSION}"
        raise _error(source, fault, _TRAIN_ANEW)
    try:
        return TypeAdapter(_Config).validate_python(content)
    except ValidationError as error:
        faults = ", ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        raise _error(source, f"{CONFIG_NAME}: {faults}", _RESTORE) from error


def _error(root: Path, fault: str, advice: str) -> BundleError:
    return BundleError(f"encoder {str(root)!r}: {fault}; {advice}")
