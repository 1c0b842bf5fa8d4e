"""The raw bytes of a prompt in a body, and a body with one value replaced.

Does not know: tokens, models or headers.
"""

import msgspec
import numpy as np

from . import faults
from .openai_body import OpenAiBody
from .prompt_kernel import distance

_QUOTE, _BRACKET = ord('"'), ord("[")
# Raw JSON that is shorter may be an array of nothing.
_LEAST_BYTES = 8
_TYPES = {ord("{"): "object", ord("["): "array", ord('"'): "string", ord("n"): "null"}


def json_type(raw: bytes) -> str:
    """Return the type of a raw JSON value in OpenAI's words."""
    return _TYPES.get(raw[0], "boolean" if raw[:1] in (b"t", b"f") else "number")


def _bytes_of(raw: msgspec.Raw, param: str, *, may_be_text: bool) -> bytes:
    """Return the bytes of a prompt or of messages, checked as far as their outermost type.

    Raises: RequestFault.
    """
    data = bytes(raw)
    if not data:
        raise faults.missing(param)
    first = data[0]
    if first != _BRACKET and not (may_be_text and first == _QUOTE):
        expected = "a string or an array" if may_be_text else "an array of objects"
        raise faults.wrong_type(param, expected, json_type(data))
    if len(data) < _LEAST_BYTES and first == _BRACKET and not data[1:-1].strip():
        raise faults.empty(param)
    return data


def prompt_bytes(body: OpenAiBody, *, is_chat: bool) -> tuple[bytes, int]:
    """Return the raw bytes that make a prompt, and where among them its messages begin.

    Tools stand before the messages, as models' templates have them.

    Raises: RequestFault for none, or of a wrong type.
    """
    if not is_chat:
        return _bytes_of(body.prompt, "prompt", may_be_text=True), 0
    data = _bytes_of(body.messages, "messages", may_be_text=False)
    tools = bytes(body.tools)
    if not tools or tools == b"null":
        return data, 0
    return tools + data, len(tools)


def spliced(body: bytes, value: msgspec.Raw, written: bytes) -> bytes:
    """Return a body with a value that was decoded from it replaced; all else as it came."""
    old = np.frombuffer(value, np.uint8)
    start = distance(np.frombuffer(body, np.uint8), old)
    return b"".join((body[:start], written, body[start + old.size :]))
