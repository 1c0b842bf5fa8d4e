"""Kinds of YAML files as Markdown: `docs/files.md`, made from their schemas.

Does not know: which kinds there are.

Run: `trimtab schema --markdown > docs/files.md`.
"""

from collections.abc import Iterator
from typing import Any

from ..env.file_kinds import Schema, example_path, mappings, schema_of
from .file_kind_table import KINDS

_INTRODUCTION = """\
# Files

Fleets are described in YAML files. Keys that no table here names are refused; every fault of a \
file is reported at once, with its key, its value and the nearest key that is known. This page is \
made by `trimtab schema --markdown`; `trimtab schema KIND` prints the JSON Schema of a kind, for \
editors, and `trimtab schema KIND --example` its example.
"""

_TYPE_NAMES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "array": "list",
    "object": "mapping",
    "null": "nothing",
}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


def markdown_page() -> str:
    """Return the page about all kinds of files."""
    return "\n".join((_INTRODUCTION, *(markdown_section(name) for name in KINDS)))


def markdown_section(name: str) -> str:
    """Return what the page says about one kind of file."""
    schema = schema_of(name, KINDS)
    example = example_path(name, KINDS).read_text(encoding="utf-8").rstrip()
    blocks = [f"## {name.capitalize()} files", schema["description"], f"```yaml\n{example}\n```"]
    for path, part in mappings(schema):
        blocks += [f"### {_title(path)}", "\n".join(_rows(part, schema))]
    return "\n\n".join(blocks) + "\n"


def _title(path: str) -> str:
    if not path:
        return "Top level"
    return f"Each of `{path.removesuffix('[]')}`" if path.endswith("[]") else f"`{path}`"


def _rows(part: Schema, schema: Schema) -> Iterator[str]:
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    for key, value in part["properties"].items():
        default = _default(value, is_required=key in part["required"])
        text = value.get("description", "")
        yield f"| `{key}` | {_type_text(value, schema)} | {default} | {text} |"


def _default(value: Schema, *, is_required: bool) -> str:
    if is_required:
        return "needed"
    default = value.get("default")
    if isinstance(default, float):
        return f"`{default:g}`"
    return "none" if default is None else f"`{default}`"


def _resolved(value: Schema, schema: Schema) -> Schema:
    """A schema with what it refers to in its place."""
    reference = value.get("$ref", "")
    if not reference:
        return value
    found: Schema = schema["$defs"][reference.removeprefix("#/$defs/")]
    return found


def _type_text(value: Schema, schema: Schema) -> str:
    """What a value may be, in words."""
    value = _resolved(value, schema)
    choices = [each for each in value.get("anyOf", ()) if each.get("type") != "null"]
    if choices:
        return " or ".join(_type_text(each, schema) for each in choices)
    if "enum" in value:
        return "one of " + ", ".join(f"`{each}`" for each in value["enum"])
    return ", ".join((_kind_text(value, schema), *_bound_texts(value)))


def _kind_text(value: Schema, schema: Schema) -> str:
    items = value.get("prefixItems") or value.get("items")
    if isinstance(items, list):
        return f"list of {len(items)}: {_type_text(items[0], schema)}"
    if isinstance(items, dict) and items and "properties" not in items:
        return f"list of {_type_text(items, schema)}"
    return _TYPE_NAMES.get(value.get("type", ""), "any")


def _bound_texts(value: dict[str, Any]) -> Iterator[str]:
    for name, words in _BOUNDS.items():
        if name in value:
            yield f"{words} {value[name]:g}"
