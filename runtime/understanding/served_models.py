"""Names that clients may ask for, and what each stands for.

Does not know: requests, or which replica serves what.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from ...env.cluster import ClusterSpec
from ...env.simulator.served_models import served_models as fleet_models
from ...traces.errors import ConfigError
from ..engines.live_replica import LiveReplica
from .stable_hashes import stable_hash

DEFAULT_CONTEXT_TOKENS = 131_072
"""Context of a model of which it is not known: that of most open models of 2026."""


class ServedModel(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a name that clients ask for stands for: a model, or an adapter on it."""

    name: str
    """As clients write it."""
    model_index: int
    """Which of the fleet's models it is."""
    engine_name: str
    """As the engines want it written."""
    adapter: str | None = None
    """LoRA adapter; None for the bare model."""
    context_tokens: int = DEFAULT_CONTEXT_TOKENS
    """Most tokens of prompt and answer, of the replica that has room for most."""


class KnownName(msgspec.Struct, frozen=True, gc=False):
    """A served name with what is worked out from it once."""

    model: ServedModel
    rewritten: bytes | None
    """What stands in a body in its place for the engine, None for the name itself."""
    seed: int
    """Of the hashes of its prompts' blocks: an adapter's KV is not its model's."""


def block_seed(model_index: int, adapter: str | None, seed: int = 0) -> int:
    """Return where the hashes of the blocks of a model's or an adapter's prompts begin.

    `seed` is the reader's own (`ReaderConfig.seed`).
    """
    return stable_hash(f"{model_index}/{adapter or ''}".encode()) ^ seed


def _known(model: ServedModel) -> KnownName:
    """Return a served name with what is worked out from it."""
    is_same = model.name == model.engine_name
    rewritten = None if is_same else msgspec.json.encode(model.engine_name)
    return KnownName(model, rewritten, block_seed(model.model_index, model.adapter))


class NameTable:
    """Looks names up by the bytes in which they stand in a body.

    Raises: ConfigError if a name is there twice.
    """

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self.models = tuple(models)
        self._by_name: dict[str, KnownName] = {}
        self._by_bytes: dict[bytes, KnownName] = {}
        for model in self.models:
            if model.name in self._by_name:
                msg = f"served name '{model.name}' is there twice; give each model its own"
                raise ConfigError(msg)
            known = _known(model)
            self._by_name[model.name] = known
            self._by_bytes[msgspec.json.encode(model.name)] = known

    @property
    def num_models(self) -> int:
        """Models of the fleet that are served under some name."""
        return 1 + max((model.model_index for model in self.models), default=0)

    def find(self, written: bytes) -> KnownName | None:
        """Return what a name as it stands in a body, quotes and all, stands for; None if nothing.

        Raises: msgspec.DecodeError if it is no string.
        """
        known = self._by_bytes.get(written)
        if known is None:  # a known name may be written with escapes
            known = self._by_name.get(msgspec.json.decode(written, type=str))
        return known


def served_models(
    cluster: ClusterSpec,
    replicas: Sequence[LiveReplica],
    *,
    aliases: Mapping[str, str] | None = None,
    adapters: Mapping[str, str] | None = None,
    context_tokens: Mapping[str, int] | None = None,
) -> tuple[ServedModel, ...]:
    """Return the names of a fleet: its models', as the cluster file and the engines have them.

    `replicas` are in the order of the cluster's; models are numbered in the order in which its
    replicas first name them, as in the simulator. `aliases` are further names of models,
    `adapters` the models that LoRA adapters belong to, `context_tokens` what replicas have room
    for, by model.

    Raises: ConfigError for a model that no replica has.
    """
    names = fleet_models(cluster)
    engine_names = {
        spec.model: live.model
        for spec, live in reversed([*zip(cluster.replicas, replicas, strict=True)])
    }
    found: dict[str, ServedModel] = {}

    def add(name: str, model: str, adapter: str | None = None) -> None:
        if model not in engine_names:
            msg = f"name '{name}' stands for model '{model}', which no replica has; one of {names}"
            raise ConfigError(msg)
        found[name] = ServedModel(
            name=name,
            model_index=names.index(model),
            engine_name=engine_names[model] if adapter is None else adapter,
            adapter=adapter,
            context_tokens=(context_tokens or {}).get(model, DEFAULT_CONTEXT_TOKENS),
        )

    for model in names:
        add(engine_names[model], model)
        add(model, model)
    for name, model in (aliases or {}).items():
        add(name, model)
    for adapter, model in (adapters or {}).items():
        add(adapter, model, adapter)
    return tuple(found.values())
