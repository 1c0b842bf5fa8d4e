"""Schemas of the YAML files say what the files' readers take; examples are complete and load."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml
from pydantic import Field

from trimtab.env import file_kinds
from trimtab.env.cluster import ClusterSpec
from trimtab.env.cluster_file import bundled_cluster_names, load_cluster
from trimtab.env.config_file import DATA_DIR, Entry
from trimtab.env.file_kinds import (
    FILE_KINDS,
    FileKind,
    Part,
    example_path,
    field_texts,
    mappings,
    schema_of,
)
from trimtab.traces.errors import ConfigError

kinds = pytest.mark.parametrize("kind", FILE_KINDS)


def items(content: Any, path: str) -> list[dict[str, Any]]:
    """The mappings that stand at a key path, or the content itself."""
    found = [content]
    for key in path.split(".") if path else ():
        values = [item[key.removesuffix("[]")] for item in found if key.removesuffix("[]") in item]
        found = [each for value in values for each in value] if key.endswith("[]") else values
    return found


@kinds
def test_every_key_says_what_it_means(kind: str) -> None:
    schema = schema_of(kind)
    paths = {path.replace("[]", "") for path, _ in mappings(schema)}
    assert paths == {"", *FILE_KINDS[kind].parts}
    for _, part in mappings(schema):
        assert part["additionalProperties"] is False
        assert set(part["required"]) <= set(part["properties"])
        missing = [key for key, value in part["properties"].items() if not value["description"]]
        assert not missing


@kinds
def test_example_loads_and_shows_every_key(kind: str) -> None:
    path = example_path(kind)
    FILE_KINDS[kind].load(path)
    text = path.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    for path_in_file, part in mappings(schema_of(kind)):
        shown = {name for item in items(content, path_in_file) for name in item}
        assert shown == set(part["properties"])
    assert text.count("#") > len(schema_of(kind)["properties"])


@kinds
def test_bundled_files_keep_to_the_schema(kind: str) -> None:
    paths = sorted((DATA_DIR / f"{kind}s").glob("*.yaml"))
    assert paths
    for path in paths:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for path_in_file, part in mappings(schema_of(kind)):
            for item in items(content, path_in_file):
                assert set(part["required"]) <= set(item) <= set(part["properties"])


def test_cluster_schema_has_the_readers_bounds() -> None:
    replica = dict(mappings(schema_of("cluster")))["replicas[]"]
    assert replica["required"] == ["server", "model"]
    frac = replica["properties"]["kv_memory_frac"]
    assert (frac["exclusiveMinimum"], frac["maximum"], frac["default"]) == (0, 1, 0.9)
    assert replica["properties"]["tensor_parallel"]["minimum"] == 1
    precision = schema_of("cluster")["$defs"]["Precision"]
    assert {"bf16", "fp8"} <= set(precision["enum"])
    network = dict(mappings(schema_of("cluster")))["servers[]"]["properties"]["network_gbps"]
    assert network["description"] == "Bandwidth to other servers, one direction, Gb/s."


def test_cluster_example() -> None:
    cluster = load_cluster(example_path("cluster"))
    assert isinstance(cluster, ClusterSpec)
    assert [replica.tensor_parallel for replica in cluster.replicas] == [4, 4, 1, 1, 1, 1, 1]
    assert "example" not in bundled_cluster_names()


def test_unknown_kind() -> None:
    with pytest.raises(ConfigError, match="unknown file kind 'clutser'; did you mean 'cluster'"):
        schema_of("clutser")


@dataclass(frozen=True)
class Group:
    """A group of settings."""

    per_hour: float = 0.0
    """Rate, 1/h; a text
    of two lines."""
    span_s: tuple[float, float] = (1.0, 2.0)
    """Range of lengths."""


@dataclass(frozen=True)
class Settings:
    """Settings with a group."""

    stalls: Group = field(default_factory=Group)
    """Engines that stand still."""


class Inner(Entry):
    """A mapping in an item."""

    depth: int
    """How deep it is."""


class Item(Entry):
    """An item of a list."""

    inner: Inner | None = None
    """What is in it."""


class File(Entry):
    """Head of a file."""

    name: str = Field(min_length=1, description="A name.")
    size: int = 3
    parts: list[Any] = Field(min_length=1)
    """Its parts."""


class Documented:
    """Says what another type leaves out."""

    size: int
    """Count of things."""
    name: str
    """Not this one."""


def test_a_kind_made_of_dataclasses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types of one level are merged; groups stand in place of references."""
    made = FileKind(
        what="A made kind.",
        top=Part((File, Settings), (Documented,)),
        parts={
            "stalls": Part((Group,)),
            "parts": Part((Item,)),
            "parts.inner": Part((Inner,)),
        },
        load=lambda path: path,
    )
    monkeypatch.setitem(file_kinds.FILE_KINDS, "made", made)
    schema = schema_of("made")
    assert schema["required"] == ["name", "parts"]
    top = schema["properties"]
    assert top["name"] == {"description": "A name.", "minLength": 1, "type": "string"}
    assert top["size"] == {"description": "Count of things.", "default": 3, "type": "integer"}
    assert top["stalls"]["description"] == "Engines that stand still."
    per_hour = top["stalls"]["properties"]["per_hour"]
    assert per_hour["description"] == "Rate, 1/h; a text of two lines."
    assert "$defs" not in schema
    assert [path for path, _ in mappings(schema)] == ["", "parts[]", "parts[].inner", "stalls"]
    inner = dict(mappings(schema))["parts[].inner"]
    assert (inner["description"], inner["required"]) == ("What is in it.", ["depth"])
    assert inner["properties"]["depth"]["description"] == "How deep it is."
    assert field_texts(Group)["span_s"] == "Range of lengths."
