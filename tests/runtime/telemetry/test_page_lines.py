"""Lines of a page that come again are read as the library reads them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from trimtab.runtime.telemetry.probes.page_lines import PageLines

LINES = st.sampled_from(
    [
        "asked {number}",
        'asked{{a="1"}} {number}',
        'asked{{a="1",b="x y"}} {number}',
        'asked{{a="with }} and \\" and \\\\"}} {number}',
        'asked{{a="1"}} {number} 1700000000',
        'asked_total{{le="+Inf"}} {number}',
        "other {number}",
        "# HELP asked {number}",
        "",
    ]
)
NUMBERS = st.sampled_from(["0", "1.5", "-2", "1e9", "NaN", "+Inf"])


def by_library(lines: list[str]) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return what the library makes of the lines that are asked for."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for line in lines:
        if not line.startswith("asked"):
            continue
        for family in text_string_to_metric_families(line + "\n"):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


@given(st.lists(st.lists(st.tuples(LINES, NUMBERS), max_size=8), min_size=1, max_size=4))
def test_pages_are_read_as_by_the_library_each_time(
    pages: list[list[tuple[str, str]]],
) -> None:
    reader = PageLines(frozenset({"asked", "asked_total"}))
    for page in pages:
        lines = [line.format(number=number) for line, number in page]
        found, expected = reader.read(lines), by_library(lines)
        assert found.keys() == expected.keys()
        for name, samples in expected.items():
            for (labels, value), (expected_labels, expected_value) in zip(
                found[name], samples, strict=True
            ):
                assert labels == expected_labels
                assert value == expected_value or (math.isnan(value) and math.isnan(expected_value))


def test_a_line_that_is_none_of_the_format_is_an_error() -> None:
    reader = PageLines(frozenset({"asked"}))
    for _ in range(2):
        with pytest.raises(ValueError, match="x"):
            reader.read(["asked x"])
    assert reader.read(["asked 1"]) == {"asked": [({}, 1.0)]}
    with pytest.raises(ValueError, match="x"):
        reader.read(["asked x"])
