"""Field types that carry their bounds: checked alike in Python and in YAML files.

Does not know: which settings there are.
"""

from dataclasses import fields
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, get_type_hints

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError


def _refuse(text: str) -> None:
    code, template = "out_of_bounds", "{text}"
    raise PydanticCustomError(code, template, {"text": text})


def _rate(value: float) -> float:
    if not 0 <= value < float("inf"):
        _refuse("must be at least 0")
    return value


def _positive(value: float) -> float:
    if not 0 < value < float("inf"):
        _refuse("must be above 0")
    return value


def _frac(value: float) -> float:
    if not 0 <= value <= 1:
        _refuse("must be in [0, 1]")
    return value


def _open_frac(value: float) -> float:
    if not 0 <= value < 1:
        _refuse("must be in [0, 1)")
    return value


def _span(value: tuple[float, float]) -> tuple[float, float]:
    low, high = value
    if not 0 < low <= high < float("inf"):
        _refuse("must be a range (low, high) above 0")
    return value


def _share(value: tuple[float, float]) -> tuple[float, float]:
    low, high = value
    if not 0 < low <= high <= 1:
        _refuse("must be a range (low, high) in (0, 1]")
    return value


def _factor(value: tuple[float, float]) -> tuple[float, float]:
    low, high = value
    if not 0 <= low <= high < float("inf"):
        _refuse("must be a range (low, high) of at least 0")
    return value


def _quantiles(value: tuple[float, ...]) -> tuple[float, ...]:
    rises = all(a <= b for a, b in pairwise(value))
    if len(value) < 2 or not rises or not 0 < value[0] <= value[-1] < float("inf"):
        _refuse("must be at least 2 rising values above 0")
    return value


# Lists of YAML stand for tuples.
_LOOSE = Field(strict=False)
Rate = Annotated[float, AfterValidator(_rate)]
Positive = Annotated[float, AfterValidator(_positive)]
Frac = Annotated[float, AfterValidator(_frac)]
OpenFrac = Annotated[float, AfterValidator(_open_frac)]
Span = Annotated[tuple[float, float], _LOOSE, AfterValidator(_span)]
Share = Annotated[tuple[float, float], _LOOSE, AfterValidator(_share)]
Factor = Annotated[tuple[float, float], _LOOSE, AfterValidator(_factor)]
Quantiles = Annotated[tuple[float, ...], _LOOSE, AfterValidator(_quantiles)]


@cache
def _validators(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    found = {}
    for name, hint in hints.items():
        for mark in getattr(hint, "__metadata__", ()):
            if isinstance(mark, AfterValidator):
                found[name] = mark.func
    return found


def check_bounds(config: Any) -> None:
    """Check every bounded field of a dataclass.

    Raises:
        ValueError: the first field out of its bounds, by name and value.
    """
    kind: Any = type(config)
    validators = _validators(kind)
    for entry in fields(config):
        if entry.name in validators:
            value = getattr(config, entry.name)
            try:
                validators[entry.name](value)
            except PydanticCustomError as error:
                msg = f"{entry.name} {error.message()}, got {value}"
                raise ValueError(msg) from None
