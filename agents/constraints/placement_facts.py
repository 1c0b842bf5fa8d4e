"""What a placement is made from: servers, the shapes that a model's replicas may have, and demand.

Does not know: rules (`placement_rules.py`), or how a plan is found (`placement_plan.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...env.cluster import ReplicaSpec, ServerSpec
from ...env.hardware import GPUS, unknown_name_message
from ...env.model_profile import MODELS
from ...env.replica_memory import free_kv_bytes, page_bytes
from ...env.roofline import parallel_fault


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaShape:
    """A way to run a model: GPUs of one kind on one server, and what they serve.

    Raises:
        ValueError: no GPU, or a rate below 0.
    """

    model: str
    gpu: str
    """Kind of GPU."""
    num_gpus: int
    """GPUs, all on one server."""
    tokens_per_s: float
    """Rate that a replica serves within its limits."""

    def __post_init__(self) -> None:
        if self.num_gpus < 1:
            msg = f"num_gpus of a replica of '{self.model}' must be at least 1, got {self.num_gpus}"
            raise ValueError(msg)
        if not self.tokens_per_s >= 0:
            msg = f"tokens_per_s of '{self.model}' must be at least 0, got {self.tokens_per_s}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementCosts:
    """What is weighed: dollars an hour.

    Raises:
        ValueError: a cost is below 0.
    """

    usd_per_gpu_hour: Mapping[str, float]
    """By kind of GPU, power included."""
    usd_per_missing_token_per_s: float = 0.01
    """Worth of an hour of serving one token a second that the forecast asks for."""
    usd_per_start: float = 0.5
    """What a start costs: weights are loaded, caches are cold."""
    usd_per_stop: float = 0.05
    """What a stop costs: requests are drained, the cache is lost."""

    def __post_init__(self) -> None:
        singles = ("usd_per_missing_token_per_s", "usd_per_start", "usd_per_stop")
        values = {name: getattr(self, name) for name in singles}
        values |= {
            f"usd_per_gpu_hour['{kind}']": usd for kind, usd in self.usd_per_gpu_hour.items()
        }
        for name, value in values.items():
            if not value >= 0:
                msg = f"{name} must be at least 0, got {value}"
                raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementFacts:
    """Everything that a plan must take as it is.

    Raises:
        ValueError: a kind of GPU has no price, a model of the forecast no shape, or a replica
            shares its GPUs.
    """

    servers: tuple[ServerSpec, ...]
    shapes: tuple[ReplicaShape, ...]
    demand_tokens_per_s: Mapping[str, float]
    """Forecast by model."""
    current: tuple[ReplicaSpec, ...] = ()
    """Replicas that stand, on whole GPUs."""
    costs: PlacementCosts

    def __post_init__(self) -> None:
        for kind in sorted({shape.gpu for shape in self.shapes}):
            if kind not in self.costs.usd_per_gpu_hour:
                known = ", ".join(map(repr, self.costs.usd_per_gpu_hour)) or "none"
                msg = f"usd_per_gpu_hour must price GPU '{kind}', got prices of {known}; add it"
                raise ValueError(msg)
        for replica in self.current:
            if replica.gpu_frac < 1.0:
                msg = (
                    f"replica '{replica.name}' has gpu_frac {replica.gpu_frac}, but plans are made "
                    "of whole GPUs; leave it and its server out"
                )
                raise ValueError(msg)
        models = {shape.model for shape in self.shapes}
        for model in self.demand_tokens_per_s:
            if model not in models:
                msg = (
                    f"model '{model}' has a forecast but no shape: it fits no kind of GPU; drop it"
                )
                raise ValueError(msg)


def shapes_that_fit(
    templates: Sequence[ReplicaSpec],
    servers: Sequence[ServerSpec],
    tokens_per_s: Mapping[tuple[str, str, int], float],
    *,
    min_kv_tokens: int,
) -> tuple[ReplicaShape, ...]:
    """Return the shapes in which weights, activations and so many tokens of KV fit.

    `templates` are settings of engines; each is tried on every kind of GPU of the servers.
    `tokens_per_s` is by (model, GPU, number of GPUs); a shape without an entry is left out.

    Raises:
        ValueError: a template's model is unknown.
    """
    shapes = []
    most = {gpu: max(s.num_gpus for s in servers if s.gpu == gpu) for gpu in _kinds(servers)}
    for template in templates:
        if template.model not in MODELS:
            raise ValueError(unknown_name_message("model", template.model, MODELS))
        model = MODELS[template.model]
        for gpu, num_gpus in most.items():
            rate = tokens_per_s.get((template.model, gpu, template.num_gpus))
            there = replace(template, server="")
            if rate is None or template.num_gpus > num_gpus:
                continue
            fault = parallel_fault(model, template.tensor_parallel, template.pipeline_parallel)
            if fault is not None:
                continue
            token_bytes = page_bytes(model, there) / template.page_tokens
            if free_kv_bytes(GPUS[gpu], model, there) >= min_kv_tokens * token_bytes:
                shapes.append(
                    ReplicaShape(
                        model=template.model,
                        gpu=gpu,
                        num_gpus=template.num_gpus,
                        tokens_per_s=rate,
                    )
                )
    return tuple(dict.fromkeys(shapes))


def _kinds(servers: Sequence[ServerSpec]) -> list[str]:
    return list(dict.fromkeys(server.gpu for server in servers))
