"""Fields put into a body: what a client wrote there does not count."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.runtime.engines.request_fields import with_fields

NAMES = st.text(max_size=8)
OBJECTS = st.dictionaries(NAMES, st.integers() | st.text() | st.lists(st.text()))


@settings(max_examples=40)
@given(OBJECTS, st.dictionaries(NAMES, st.integers() | st.text()), st.sampled_from([None, 2]))
def test_fields_are_added_and_win(
    body: dict[str, object], fields: dict[str, int | str], indent: int | None
) -> None:
    text = f" {json.dumps(body, indent=indent)}\n".encode()
    assert json.loads(with_fields(text, fields)) == {**body, **fields}


def test_without_fields_the_bytes_stay_as_they_are() -> None:
    assert with_fields(b" not json ", {}) == b" not json "
    assert with_fields(b"{}", {"id_slot": 1}) == b'{"id_slot": 1}'
    assert with_fields(b'{"a":1}', {"priority": -1}) == b'{"a":1,"priority": -1}'


@pytest.mark.parametrize("body", [b"", b"[1]", b'{"a":1', b"x}"])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="must be a JSON object to take fields"):
        with_fields(body, {"priority": 1})
