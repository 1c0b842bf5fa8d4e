"""Where in a YAML file each key stands, for messages that name the line.

Does not know: what the keys mean.
"""

from collections.abc import Iterator
from pathlib import Path

import yaml


def key_lines(path: Path) -> dict[str, int]:
    """Return the line, from 1, of every key path of a YAML file: `breakers[2].above`.

    A file that is no YAML has no lines.
    """
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return node_lines(node) if node is not None else {}


def node_lines(node: yaml.Node) -> dict[str, int]:
    """Return the line, from 1, of every key path below a node."""
    return dict(_lines(node, ""))


def _lines(node: yaml.Node, path: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = f"{path}.{key.value}" if path else str(key.value)
            yield inner, key.start_mark.line + 1
            yield from _lines(value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            inner = f"{path}[{index}]"
            yield inner, value.start_mark.line + 1
            yield from _lines(value, inner)


def line_of(lines: dict[str, int], path: str) -> int | None:
    """Return the line of a key path, or of the nearest mapping or item that holds it."""
    while path:
        if path in lines:
            return lines[path]
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return None
