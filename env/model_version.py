"""Versions of a model: whole numbers with dots between, and names that say one.

Does not know: where versions are kept.
"""

import re
from collections.abc import Iterable
from typing import Any

_VERSION = re.compile(r"(0|[1-9]\d{0,8})(\.(0|[1-9]\d{0,8})){0,2}", re.ASCII)


def version_text(value: Any) -> str:
    """The version that a file gives, in its shortest form: 2, 2.0 and 2.0.0 are version 2.

    Raises: `ValueError` for anything but a whole number, or up to three with dots between.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    text = str(value) if is_whole or isinstance(value, str) else ""
    if _VERSION.fullmatch(text):
        while text.endswith(".0"):
            text = text.removesuffix(".0")
        return text
    quote = " (put it in quotes)" if isinstance(value, float) else ""
    msg = f"must be a whole number, or up to three with dots between as '1.4.2'{quote}"
    raise ValueError(msg)


def version_order(version: str) -> tuple[int, int, int]:
    """What versions are sorted by: 2 comes before 2.0.1, and that before 10."""
    numbers = [int(part) for part in version.split(".")]
    major, minor, patch = (*numbers, 0, 0)[:3]
    return major, minor, patch


def is_version(text: str) -> bool:
    """Whether this is a version in its shortest form."""
    try:
        return version_text(text) == text
    except ValueError:
        return False


def next_version(versions: Iterable[str]) -> str:
    """The whole number after the newest version; 1 where there is none."""
    return str(max((version_order(version)[0] for version in versions), default=0) + 1)


def split_key(key: str) -> tuple[str, str | None]:
    """Name and version of `name@version`; None for a bare name."""
    name, _, version = key.partition("@")
    if not version:
        return name, None
    try:
        return name, version_text(version)
    except ValueError:
        return name, version


def is_named(key: str, name: str) -> bool:
    """Whether `name` means the model of this key: the key itself, or its bare name."""
    own, version = split_key(name)
    return split_key(key) == (own, version) or (version is None and split_key(key)[0] == own)
