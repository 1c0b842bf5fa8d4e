"""Texts of model files from anybody: what cannot be read is said, and nothing else happens."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_files import SIZES, make_text

from trimtab.env.file_fault import Fault
from trimtab.env.model_entry import read_text
from trimtab.env.model_text import MAX_TEXT_BYTES, parse_text


def test_yaml_and_json_are_the_same() -> None:
    yaml_text, json_text = make_text(), json.dumps(SIZES, indent=2)
    assert read_text(json_text, is_json=True) == read_text(yaml_text)
    assert parse_text(json_text, is_json=True).lines["hidden_size"] == 4
    assert parse_text(yaml_text).lines["hidden_size"] == 3
    # tabs are no YAML: without lines, the faults still name their keys
    tabs = json.dumps({**SIZES, "num_heads": "x"}, indent="\t")
    assert [fault.key for fault in read_text(tabs, is_json=True).faults] == ["num_heads"]


BOMB = "a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "is_json", "said"),
    [
        ("a: [", False, "cannot be read as YAML"),
        ("{", True, "cannot be read as JSON"),
        (b"\xff\xfe\x00", False, "cannot be read as YAML"),
        ("a: \x00", False, "cannot be read as YAML"),
        ("a: 2001-99-99", False, "cannot be read as YAML"),
        ("a: " + "9" * 5000, False, "cannot be read as YAML"),
        ('{"a": ' + "9" * 5000 + "}", True, "cannot be read as JSON"),
        ("[" * 600, False, "nested too deeply"),
        ("[" * 60_000, True, "nested too deeply"),
        ("a: 1\n---\nb: 2", False, "cannot be read as YAML"),
        (BOMB, False, "has an alias to this anchor; write the value out"),
        ("&a [*a]", False, "has an alias"),
        ("? [a]\n: 1", False, "has a key that is no text"),
        ("a: 1\na: 2", False, "key is given twice"),
        ('{"a": 1, "a": 2}', True, "'a' is given twice"),
        ("x" * (MAX_TEXT_BYTES + 1), False, f"has {MAX_TEXT_BYTES + 1} bytes; expected at most"),
        ("!!python/object:os.system {}", False, "cannot be read as YAML"),
        ("", False, "must be a mapping of name"),
        ("null", True, "must be a mapping of name"),
        ("7", False, "must be a mapping of name"),
    ],
)
def test_what_is_no_model_file(text: str | bytes, is_json: bool, said: str) -> None:
    reading = read_text(text, is_json=is_json)
    assert reading.profile is None
    assert any(said in fault.text for fault in reading.faults), reading.faults
    assert len(reading.faults[0].text) <= 500


def test_lines_of_keys_that_are_given_twice() -> None:
    (fault,) = read_text(make_text() + "num_heads: 8\n").faults
    assert fault == Fault("num_heads", "key is given twice; leave out one", 10)
    assert str(fault) == "line 10: num_heads: key is given twice; leave out one"


KEYS = (
    *SIZES,
    "layers",
    "latent",
    "version",
    "attention",
    "window_tokens",
    "kv_bytes_per_token",
    "kv_reference_tokens",
    "recommended_batch",
    "precisions",
    "num_experts",
    "experts_per_token",
    "expert_params",
    "activation_bytes_per_token",
)
NUMBERS = st.integers(-2, 2**70) | st.floats() | st.sampled_from([0, 1, 64, 4096, 10**9])
WORDS = st.text("az@1. -:\x00\u00e9\ud800", max_size=4) | st.sampled_from(["mla", "sliding", "fp8"])
PLAIN = st.none() | st.booleans() | NUMBERS | WORDS
INNER = ("count", "kind", "mlp_width", "params", "min", "max", "kv_rank", "rope_dim", "x")
VALUES = (
    PLAIN
    | st.lists(PLAIN | st.lists(NUMBERS, max_size=2), max_size=3)
    | st.dictionaries(st.sampled_from(INNER), PLAIN, max_size=3)
    | st.lists(st.dictionaries(st.sampled_from(INNER), PLAIN, max_size=3), max_size=2)
)
CHANGES = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4)


@given(changes=CHANGES)
def test_any_value_of_any_key_is_a_model_or_has_faults(changes: dict[str, object]) -> None:
    reading = read_text(json.dumps({**SIZES, **changes}), is_json=True)
    assert (reading.profile is None) == bool(reading.faults)


@given(text=st.binary(max_size=100) | st.text("a:[{&*!-? \n\"'|1.", max_size=60).map(str.encode))
def test_any_text_has_faults(text: bytes) -> None:
    for is_json in (False, True):
        assert read_text(text, is_json=is_json).faults
