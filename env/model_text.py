"""The text of a model file, YAML or JSON, as a mapping with the lines of its keys.

Text may come from anybody: anchors, keys given twice, depth and length beyond reason are refused.

Does not know: what the keys mean.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from .file_fault import Fault
from .yaml_lines import node_lines

# bytes; a description of every layer of a model of 500 layers takes 40,000
MAX_TEXT_BYTES = 65_536


class ParsedText(NamedTuple):
    """What a text holds, or why it cannot be read."""

    content: Any
    """Mappings, lists and scalars."""
    lines: dict[str, int]
    """Line of every key path."""
    faults: tuple[Fault, ...]
    """Empty when it can be read."""


def parse_text(text: str | bytes, *, is_json: bool = False) -> ParsedText:
    """Read a text of YAML, or of JSON."""
    size = len(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    if size > MAX_TEXT_BYTES:
        return _unreadable(f"has {size} bytes; expected at most {MAX_TEXT_BYTES}")
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        # A value such as 2001-99-99 or a number of 5,000 digits is a ValueError of its own.
        return _parsed_json(decoded) if is_json else _parsed_yaml(decoded)
    except RecursionError:
        return _unreadable("is nested too deeply; a model file has at most three levels")
    except (ValueError, yaml.YAMLError) as error:
        return _unreadable(f"cannot be read as {'JSON' if is_json else 'YAML'}: {error}")


def _unreadable(text: str) -> ParsedText:
    return ParsedText(None, {}, (Fault("file", text),))


def _parsed_yaml(text: str) -> ParsedText:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return ParsedText(None, {}, ())
        faults = tuple(_node_faults(node))
        if faults:
            return ParsedText(None, {}, faults)
        return ParsedText(loader.construct_document(node), node_lines(node), ())
    finally:
        loader.dispose()


def _node_faults(root: yaml.Node) -> Iterator[Fault]:
    """Nodes that stand in two places, and keys that are given twice."""
    seen: set[int] = set()
    nodes = [root]
    while nodes:
        node = nodes.pop()
        line = node.start_mark.line + 1
        if id(node) in seen:
            yield Fault("file", "has an alias to this anchor; write the value out", line)
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            keys: set[str] = set()
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    yield Fault("file", "has a key that is no text; use a word", line)
                    continue
                if key.value in keys:
                    here = key.start_mark.line + 1
                    yield Fault(key.value, "key is given twice; leave out one", here)
                keys.add(key.value)
                nodes += (key, value)


def _parsed_json(text: str) -> ParsedText:
    content = json.loads(text, object_pairs_hook=_unique)
    try:
        # JSON is YAML but for tabs and odd escapes; without lines faults still name their keys.
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines = {} if node is None else node_lines(node)
    except yaml.YAMLError:
        lines = {}
    return ParsedText(content, lines, ())


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            msg = f"key {key!r} is given twice; leave out one"
            raise ValueError(msg)
    return dict(pairs)
