"""The kinds of YAML files, each with its JSON Schema and a complete example.

The schema is made from the types that read the file; the meaning of a key is the text below its
field. A new kind is one line of `FILE_KINDS` and an example in `env/data/examples/`.

Does not know: how a file's content is used.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from ..traces.errors import ConfigError
from .cluster import ClusterSpec, ReplicaSpec, ServerSpec
from .cluster_file import CLUSTER_ENTRIES, load_cluster
from .config_file import DATA_DIR, Entry
from .energy_prices import DayCurve, TariffFile, load_tariff
from .fault_file import FaultFile, entry_of, groups, load_faults
from .hardware import unknown_name_message
from .model_file import MODEL_ENTRIES, read_model
from .model_layers import LayerGroup
from .model_shape import BatchRange, LatentShape, ModelProfile
from .simulator.faults import FaultConfig
from .speculation import Speculation

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """A mapping in a file: its top level, a group, or an item of a list."""

    types: tuple[type, ...]
    """Entries or dataclasses whose fields are its keys."""
    documented_by: tuple[type, ...] = ()
    """Types whose fields of the same name say what keys mean that say nothing themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileKind:
    """A kind of YAML file."""

    what: str
    """What it says, in a sentence."""
    top: Part
    parts: Mapping[str, Part] = field(default_factory=dict)
    """What keys hold, where that is a mapping or a list of mappings; by key path, the outer ones
    first: `replicas`, `replicas.limits`."""
    load: Callable[[Path], object]
    """Reads a file of this kind."""


FILE_KINDS: dict[str, FileKind] = {
    "cluster": FileKind(
        what="The servers of a fleet, their GPUs, and the replicas placed on them.",
        top=Part((CLUSTER_ENTRIES["file"],), (ClusterSpec,)),
        parts={
            "servers": Part((CLUSTER_ENTRIES["servers"],), (ServerSpec,)),
            "replicas": Part((CLUSTER_ENTRIES["replicas"],), (ReplicaSpec,)),
            "replicas.speculative": Part(
                (CLUSTER_ENTRIES["replicas.speculative"],), (Speculation,)
            ),
        },
        load=load_cluster,
    ),
    "model": FileKind(
        what=(
            "The sizes of a model of one's own, as totals or layer by layer. A cluster file names "
            "model files under `models`; `trimtab model add` stores them in versions."
        ),
        top=Part((MODEL_ENTRIES["file"],), (ModelProfile,)),
        parts={
            "latent": Part((MODEL_ENTRIES["latent"],), (LatentShape,)),
            "layers": Part((MODEL_ENTRIES["layers"],), (LayerGroup,)),
            "recommended_batch": Part((MODEL_ENTRIES["recommended_batch"],), (BatchRange,)),
        },
        load=read_model,
    ),
    "fault": FileKind(
        what="The hidden trouble of a fleet: what goes wrong, how often, and how badly.",
        top=Part((entry_of(FaultConfig, FaultFile),), (FaultConfig, FaultFile)),
        parts={key: Part((entry_of(kind, Entry),), (kind,)) for key, kind in groups().items()},
        load=load_faults,
    ),
    "tariff": FileKind(
        what="Price and carbon intensity of electricity over a day (UTC).",
        top=Part((TariffFile,)),
        parts={key: Part((DayCurve,)) for key in ("price_usd_per_mwh", "carbon_g_per_kwh")},
        load=load_tariff,
    ),
}


def file_kind(name: str, kinds: Mapping[str, FileKind] = FILE_KINDS) -> FileKind:
    """Return a kind of file by name.

    Raises: `ConfigError` when there is none of that name.
    """
    if name not in kinds:
        raise ConfigError(unknown_name_message("file kind", name, kinds))
    return kinds[name]


def example_path(name: str, kinds: Mapping[str, FileKind] = FILE_KINDS) -> Path:
    """Return the complete, commented example of a kind of file."""
    file_kind(name, kinds)
    return DATA_DIR / "examples" / f"{name}.yaml"


@cache
def field_texts(kind: type) -> Mapping[str, str]:
    """Return the texts below the fields of a class and its bases, by field name."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        try:
            source = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):  # made at run time, or built in
            continue
        (node,) = ast.parse(source).body
        body = getattr(node, "body", [])
        for one, below in pairwise(body):
            if (
                isinstance(one, ast.AnnAssign)
                and isinstance(one.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                texts[one.target.id] = inspect.cleandoc(str(below.value.value)).replace("\n", " ")
    return texts


def _type_schema(kind: type) -> Schema:
    """Return pydantic's schema of an entry or a dataclass."""
    if issubclass(kind, BaseModel):
        return kind.model_json_schema()
    return TypeAdapter(kind).json_schema()


def _part_schema(part: Part, definitions: Schema) -> Schema:
    """Return the schema of a mapping; what it refers to is put into `definitions`."""
    properties: dict[str, Schema] = {}
    required: list[str] = []
    texts: dict[str, str] = {}
    for kind in (*part.documented_by, *part.types):
        texts.update(field_texts(kind))
    for kind in part.types:
        schema = _type_schema(kind)
        for name, definition in schema.get("$defs", {}).items():
            definitions[name] = {k: v for k, v in definition.items() if k != "description"}
        required += schema.get("required", [])
        for key, value in schema.get("properties", {}).items():
            kept = {name: each for name, each in value.items() if name != "title"}
            text = {"description": texts[key]} if key in texts else {}
            properties[key] = {**text, **kept}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }


def schema_of(name: str, kinds: Mapping[str, FileKind] = FILE_KINDS) -> Schema:
    """Return the JSON Schema of a kind of file.

    Raises: `ConfigError` when there is no such kind.
    """
    kind, definitions = file_kind(name, kinds), Schema()
    schema = _part_schema(kind.top, definitions)
    for path, part in kind.parts.items():
        *outer, key = path.split(".")
        place = schema
        for name_of_outer in outer:
            place = place["properties"][name_of_outer]
            place = place.get("items", place)
        value, inner = place["properties"][key], _part_schema(part, definitions)
        if value.get("type") == "array":
            value["items"] = inner
        else:
            text = {k: v for k, v in value.items() if k == "description"}
            place["properties"][key] = {**text, **inner}
    used = str(schema)
    definitions = {k: v for k, v in definitions.items() if f"#/$defs/{k}'" in used}
    schema = {
        "$schema": DIALECT,
        "title": f"{name} file",
        "description": kind.what,
        **schema,
    }
    return {**schema, "$defs": definitions} if definitions else schema


def mappings(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Yield the mappings of a schema, the outer ones first, by key path; `[]` ends a list's."""
    yield path, schema
    for key, value in schema["properties"].items():
        inner = value.get("items", value)
        if isinstance(inner, dict) and "properties" in inner:
            end = key if inner is value else f"{key}[]"
            yield from mappings(inner, f"{path}.{end}" if path else end)
