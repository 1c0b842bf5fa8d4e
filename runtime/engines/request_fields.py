"""Puts fields into a request's body without reading it: a priority, a slot, an id.

They go to the end, where JSON readers take the last of two equal names: what a client wrote there
does not count.

Does not know: which fields an engine wants (`Engine.request_fields`).
"""

import json
from collections.abc import Mapping


def with_fields(body: bytes, fields: Mapping[str, int | str]) -> bytes:
    """Return a JSON object with fields added at its end.

    Raises: ValueError if the body does not begin and end as an object.
    """
    if not fields:
        return body
    stripped = body.strip()
    if not (stripped.startswith(b"{") and stripped.endswith(b"}")):
        msg = f"a body must be a JSON object to take fields, got {body[:20]!r}..."
        raise ValueError(msg)
    inside = stripped[:-1].rstrip()
    comma = b"" if inside == b"{" else b","
    return inside + comma + json.dumps(dict(fields)).encode()[1:]
