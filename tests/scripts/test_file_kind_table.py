"""The kinds of files of higher rooms: schema, example and documentation."""

import pytest
import yaml

from trimtab.env.file_kinds import FILE_KINDS, example_path, mappings, schema_of
from trimtab.scripts.file_kind_table import KINDS

HIGHER = sorted(set(KINDS) - set(FILE_KINDS))


def values_at(content, path):
    """All mappings of an example that stand at a key path of its schema."""
    found = [content]
    for key in filter(None, path.split(".")):
        name = key.removesuffix("[]")
        inner = [one[name] for one in found if isinstance(one, dict) and name in one]
        found = [item for one in inner for item in (one if key.endswith("[]") else [one])]
    return found


@pytest.mark.parametrize("kind", HIGHER)
def test_the_example_is_valid_and_shows_every_key(kind):
    path = example_path(kind, KINDS)
    KINDS[kind].load(path)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    text = path.read_text(encoding="utf-8")
    for where, part in mappings(schema_of(kind, KINDS)):
        shown = {key for one in values_at(content, where) for key in one}
        # What excludes another key is named in its comment.
        missing = {key for key in part["properties"] if key not in shown and key not in text}
        assert not missing, (where, missing)


@pytest.mark.parametrize("kind", HIGHER)
def test_every_key_says_what_it_means(kind):
    for where, part in mappings(schema_of(kind, KINDS)):
        for key, value in part["properties"].items():
            assert value.get("description"), f"{where}.{key} has no text"


def test_names_do_not_clash():
    assert len(KINDS) == len(FILE_KINDS) + len(HIGHER)
    assert HIGHER == ["policy"]
