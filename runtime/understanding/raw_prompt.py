"""The raw bytes of a prompt in a body, and a body with one value replaced.

Does not know: tokens, models or headers.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from . import faults
from .openai_body import NOTHING, OpenAiBody

_QUOTE, _BRACKET = ord('"'), ord("[")
# Raw JSON that is shorter may be an array of nothing.
_LEAST_BYTES = 8
_TYPES = {ord("{"): "object", ord("["): "array", ord('"'): "string", ord("n"): "null"}


def json_type(raw: bytes) -> str:
    """Return the type of a raw JSON value in OpenAI's words."""
    return _TYPES.get(raw[0], "boolean" if raw[:1] in (b"t", b"f") else "number")


def _bytes_of(raw: msgspec.Raw, param: str, *, may_be_text: bool) -> NDArray[np.uint8]:
    """Return the bytes of a prompt or of messages, checked as far as their outermost type.

    Raises: RequestFault.
    """
    if raw is NOTHING:
        raise faults.missing(param)
    data = np.frombuffer(raw, np.uint8)
    first = data[0]
    if first != _BRACKET and not (may_be_text and first == _QUOTE):
        expected = "a string or an array" if may_be_text else "an array of objects"
        raise faults.wrong_type(param, expected, json_type(bytes(raw)))
    if data.size < _LEAST_BYTES and first == _BRACKET and not bytes(raw)[1:-1].strip():
        raise faults.empty(param)
    return data


def prompt_bytes(body: OpenAiBody, *, is_chat: bool) -> tuple[NDArray[np.uint8], int]:
    """Return the raw bytes that make a prompt, and where among them its messages begin.

    Tools stand before the messages, as models' templates have them.

    Raises: RequestFault for none, or of a wrong type.
    """
    if not is_chat:
        return _bytes_of(body.prompt, "prompt", may_be_text=True), 0
    data = _bytes_of(body.messages, "messages", may_be_text=False)
    if body.tools is NOTHING:
        return data, 0
    tools = np.frombuffer(body.tools, np.uint8)
    return np.concatenate([tools, data]), tools.size


def _address(data: NDArray[np.uint8]) -> int:
    """Return where an array's data lies."""
    address: int = data.__array_interface__["data"][0]
    return address


def spliced(body: bytes, value: msgspec.Raw, written: bytes) -> bytes:
    """Return a body with a value that was decoded from it replaced; all else as it came."""
    data = np.frombuffer(value, np.uint8)
    start = _address(data) - _address(np.frombuffer(body, np.uint8))
    return b"".join((body[:start], written, body[start + data.size :]))
