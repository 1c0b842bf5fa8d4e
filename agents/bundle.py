"""A deployable policy: one directory with weights, configuration, evaluation and a model card.

    policy.safetensors  weights of the actor, without the critic; no pickle anywhere
    config.json         what the weights were trained for; must match this code to be loaded
    eval.json           results, as given
    README.md           model card made from the two

A policy acts on features and knobs by position, so a bundle is refused when the feature registry
or the knobs' names and bounds differ from those that it was trained with.

Does not know: how the policy was trained, or when its actions should be trusted.
"""

import hashlib
import json
import platform
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from ..env.knobs import BIAS_SCALE, Knobs, residual
from ..env.observation import Observation, ObservationLayout, observation_space
from ..env.state.registry import registry_hash
from ..env.vector_env import FUTURE
from ..graph_encoder.extractor import GraphExtractor
from ..traces.atomic import replace_file, write_directory
from .bundle_config import (
    CONFIG_NAME,
    FORMAT_VERSION,
    RESTORE,
    SAVE_ANEW,
    BundleConfig,
    bundle_error,
    check_fit,
    knob_bounds,
    read_bytes,
    read_config,
    read_json,
)
from .policy_network import EquivariantHead, EquivariantPolicy

WEIGHTS_NAME = "policy.safetensors"
EVALUATION_NAME = "eval.json"
CARD_NAME = "README.md"
GATE_KEY = "gate"
"""Where a gate's verdict stands in a bundle's results."""
_LIBRARIES = ("numpy", "torch", "torch-geometric", "stable-baselines3", "gymnasium", "safetensors")


def _actor(extractor: nn.Module, head: nn.Module) -> nn.Sequential:
    """Return what is needed of a policy to compute its deterministic action."""
    return nn.Sequential(OrderedDict(extractor=extractor, head=head))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bundle:
    """A loaded policy; `load_bundle` makes it."""

    base_knobs: Knobs
    """Knobs that action 0 stands for."""
    layout: ObservationLayout
    """Padded sizes of the observations that it takes."""
    evaluation: dict[str, Any]
    """Results as given to `save_bundle`."""
    trained_on: str
    """Description as given to `save_bundle`."""
    actor: nn.Module
    """The network, frozen."""

    @property
    def may_act(self) -> bool:
        """Whether the gate lets the policy act; True where no gate has judged it."""
        verdict = self.evaluation.get(GATE_KEY)
        return not isinstance(verdict, dict) or bool(verdict.get("may_act", False))

    def action(self, observation: Observation) -> NDArray[np.float32]:
        """Return the deterministic action, [action size], each in [-1, 1].

        Raises:
            ValueError: a key is missing, has another shape than the layout's, or is not finite.
        """
        tensors = {}
        for key, shape in _observation_shapes(self.layout).items():
            fault = _observation_fault(observation.get(key), shape)
            if fault:
                msg = f"observation '{key}' {fault}; expected finite values of shape {shape}; "
                raise ValueError(msg + "make it with env.observation.observe and bundle.layout")
            tensors[key] = torch.as_tensor(observation[key], dtype=torch.float32).unsqueeze(0)
        with torch.inference_mode():
            action: NDArray[np.float32] = self.actor(tensors)[0].clamp(-1.0, 1.0).numpy()
        return action

    def knobs(self, observation: Observation) -> Knobs:
        """Return the knobs that the policy sets, with a bias for each real replica."""
        action = self.action(observation).astype(np.float64)
        return residual(self.base_knobs, action, int(observation["replica_mask"].sum()))


def save_bundle(
    path: str | Path,
    *,
    policy: EquivariantPolicy,
    base_knobs: Knobs,
    layout: ObservationLayout,
    evaluation: Mapping[str, Any],
    description: str,
    overwrite: bool = False,
) -> None:
    """Write a bundle: complete under a temporary name beside `path`, then renamed into place.

    `evaluation` is any JSON object of results, `description` says what the policy was trained on;
    `overwrite` replaces the whole directory of an older bundle.

    Raises:
        BundleError: something is at `path` and `overwrite` is off, or it is not a bundle.
        ValueError: the policy is not for this layout, or not finite; `base_knobs` has a bias;
            `evaluation` is not JSON.
    """
    target = Path(path)
    _check_target(target, overwrite)
    if _acted_on(policy) != observation_space(layout):
        msg = f"policy was built for another layout than {layout}; pass the layout of its env"
        raise ValueError(msg)
    if base_knobs.replica_bias.any():
        msg = f"base_knobs must have no replica_bias, got {base_knobs.replica_bias}; drop it"
        raise ValueError(msg)
    weights = _weights(policy)
    config = _config(policy, base_knobs, layout, weights, description)
    files = {
        WEIGHTS_NAME: weights,
        CONFIG_NAME: _to_json(asdict(config), "config"),
        EVALUATION_NAME: _to_json(evaluation, "evaluation"),
        CARD_NAME: _model_card(target.name, config, evaluation).encode(),
    }
    write_directory(target, files)


def load_bundle(path: str | Path) -> Bundle:
    """Read a bundle, and check that this code means the same by its features and knobs.

    Raises:
        BundleError: a file is missing or corrupt, or does not fit this code or the others.
    """
    root = Path(path)
    config = read_config(root)
    check_fit(root, config)
    try:
        base_knobs = Knobs.of(**config.base_knobs)
    except ValueError as error:
        raise bundle_error(root, f"base_knobs: {error}", RESTORE) from error
    with torch.device("meta"):  # no initial weights, and no draw from the global generator
        extractor = GraphExtractor(observation_space(config.layout), config.hidden_size)
        actor = _actor(extractor, EquivariantHead(config.hidden_size))
    _load_weights(root, config, actor)
    return Bundle(
        base_knobs=base_knobs,
        layout=config.layout,
        evaluation=read_json(root, EVALUATION_NAME),
        trained_on=config.trained_on,
        actor=actor.requires_grad_(False).eval(),
    )


def record_verdict(path: str | Path, verdict: Mapping[str, Any]) -> None:
    """Write a gate's verdict into a bundle's results and its model card.

    Raises:
        BundleError: a file is missing or corrupt.
        ValueError: the verdict is not JSON.
    """
    root = Path(path)
    config = read_config(root)
    evaluation = {**read_json(root, EVALUATION_NAME), GATE_KEY: dict(verdict)}
    replace_file(root / EVALUATION_NAME, _to_json(evaluation, "evaluation"))
    replace_file(root / CARD_NAME, _model_card(root.name, config, evaluation).encode())


@cache
def _observation_shapes(layout: ObservationLayout) -> dict[str, tuple[int, ...]]:
    return {key: box.shape or () for key, box in observation_space(layout).spaces.items()}


def _observation_fault(found: NDArray[np.float32] | None, shape: tuple[int, ...]) -> str | None:
    if found is None:
        return "is missing"
    if found.shape != shape:
        return f"has shape {found.shape}"
    return None if np.isfinite(found).all() else "is not finite"


def _check_target(target: Path, overwrite: bool) -> None:
    """Refuse to replace anything, or, with `overwrite`, anything but a bundle."""
    if target.exists() and not overwrite:
        raise bundle_error(target, "exists", "choose another path or pass overwrite=True")
    if target.exists() and not (target / WEIGHTS_NAME).is_file():
        raise bundle_error(target, "exists and is not a bundle", "choose another path or remove it")


def _acted_on(policy: EquivariantPolicy) -> spaces.Dict:
    """Return the observations that the actor reads: without what only a critic is told."""
    space = policy.observation_space
    assert isinstance(space, spaces.Dict), f"observation space is {space}"
    return spaces.Dict({key: box for key, box in space.spaces.items() if key != FUTURE})


def _weights(policy: EquivariantPolicy) -> bytes:
    """Return the actor's weights as the content of a safetensors file."""
    state = _actor(policy.pi_features_extractor, policy.action_net).state_dict()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    for name, tensor in sorted(tensors.items()):
        if not torch.isfinite(tensor).all():
            msg = f"policy weight '{name}' is not finite; training diverged, save an earlier policy"
            raise ValueError(msg)
    return save_tensors(tensors)


def _config(
    policy: EquivariantPolicy,
    base_knobs: Knobs,
    layout: ObservationLayout,
    weights: bytes,
    description: str,
) -> BundleConfig:
    return BundleConfig(
        format_version=FORMAT_VERSION,
        registry_hash=registry_hash(),
        knobs=knob_bounds(),
        bias_scale=BIAS_SCALE,
        base_knobs=base_knobs.as_dict(),
        layout=layout,
        hidden_size=policy.hidden_size,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        trained_on=description,
        versions={"python": platform.python_version()}
        | {name: version(name) for name in _LIBRARIES},
    )


def _to_json(content: Mapping[str, Any], name: str) -> bytes:
    try:
        return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        msg = f"{name} must be plain JSON with finite numbers: {error}; convert it"
        raise ValueError(msg) from error


def _model_card(name: str, config: BundleConfig, evaluation: Mapping[str, Any]) -> str:
    rows = [f"| {key} | {value} |" for key, value in _flatten(evaluation)]
    results = "\n".join(["| result | value |", "|---|---|", *rows]) if rows else "None recorded."
    versions = ", ".join(f"{library} {number}" for library, number in config.versions.items())
    sizes = ", ".join(f"{size} {node}s" for node, size in config.layout.sizes().items())
    return f"""---
library_name: trimtab
tags: [reinforcement-learning, stable-baselines3, llm-serving, scheduling]
---

# {name}

A Trimtab policy. It reads the state of a fleet of LLM replicas and moves an analytic scheduler:
residuals of its tunable knobs, and a small bias for each replica. Action 0 is that scheduler.

## Trained on

{config.trained_on}
{_gate_text(evaluation)}
## Results

{results}

## Limits

- At most {sizes}.
- Refused by code whose feature registry is not `{config.registry_hash}` or whose knobs differ.
- Results hold for the fleets, loads and simulator that they were measured on.

Made with {versions}.
"""


def _gate_text(evaluation: Mapping[str, Any]) -> str:
    """Return what the gate said, as a section of the card; nothing if none has judged."""
    verdict = evaluation.get(GATE_KEY)
    if not isinstance(verdict, Mapping):
        return ""
    if verdict.get("may_act"):
        return "\n## Gate\n\nPassed: the policy may act.\n"
    reasons = "; ".join(str(reason) for reason in verdict.get("reasons", ()))
    return (
        f"\n## Gate\n\nRefused, so the policy is OFF and its base steers in its place: {reasons}.\n"
    )


def _flatten(content: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested results as dotted names and readable values."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(content, float):
        yield prefix, f"{content:.4g}"
    else:
        yield prefix, str(content).replace("|", "\\|").replace("\n", " ")


def _load_weights(root: Path, config: BundleConfig, actor: nn.Module) -> None:
    """Fill the actor with the bundle's weights, each checked for name, shape and finiteness."""
    content = read_bytes(root, WEIGHTS_NAME)
    found = hashlib.sha256(content).hexdigest()
    if found != config.weights_sha256:
        fault = f"{WEIGHTS_NAME} has sha256 {found}, expected {config.weights_sha256}"
        raise bundle_error(root, fault, RESTORE)
    try:
        tensors = load_tensors(content)
    except SafetensorError as error:
        raise bundle_error(root, f"{WEIGHTS_NAME} is corrupt: {error}", RESTORE) from error
    expected = actor.state_dict()
    if tensors.keys() != expected.keys():
        names = ", ".join(sorted(tensors.keys() ^ expected.keys()))
        raise bundle_error(
            root, f"{WEIGHTS_NAME} and this code's actor differ in {names}", SAVE_ANEW
        )
    for name, tensor in sorted(tensors.items()):
        if _kind(tensor) != _kind(expected[name]):
            fault = f"tensor '{name}' is {_kind(tensor)}, expected {_kind(expected[name])}"
            raise bundle_error(root, fault, SAVE_ANEW)
        if not torch.isfinite(tensor).all():
            raise bundle_error(root, f"tensor '{name}' is not finite", "save an earlier policy")
    actor.to_empty(device="cpu").load_state_dict(tensors)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
