"""The body of a completion or chat completion: what of it matters for scheduling, checked.

Only what is needed is decoded; prompt, messages and tools stay the bytes that came. Of a key that
comes twice the last counts, as for the engines. Keys that are not known here pass unseen.

Does not know: models that are served, headers, or tokens.
Source: OpenAI's API reference of both endpoints; `priority` as in vLLM.
"""

import re

import msgspec

from . import faults
from .reader import RequestFault

MOST_CHOICES = 128
"""Most answers to one prompt, as OpenAI has it."""
MOST_TOKENS = 2**31 - 1
MOST_TEMPERATURE = 2
NOTHING = msgspec.Raw()
"""A key that is not there."""


class OpenAiBody(msgspec.Struct, gc=False):
    """What is decoded of a body of either endpoint."""

    model: msgspec.Raw = NOTHING
    messages: msgspec.Raw = NOTHING
    prompt: msgspec.Raw = NOTHING
    tools: msgspec.Raw = NOTHING
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    priority: int | None = None
    user: str | None = None
    session_id: str | int | None = None
    prompt_cache_key: str | None = None

    def limit(self) -> int:
        """Most tokens of an answer, 0 if it names no limit."""
        return self.max_completion_tokens or self.max_tokens or 0


_decode = msgspec.json.Decoder(OpenAiBody).decode

_MISMATCH = re.compile(
    r"Expected `(?P<expected>[^`]+)`, got `(?P<got>[^`]+)`(?: - at `\$\.(?P<at>\w+))?"
)
_AT = re.compile(r"at `\$\.(?P<at>\w+)")
# What msgspec calls a type, in OpenAI's words.
_EXPECTED = {
    "bool": "a boolean",
    "int": "an integer",
    "float": "a decimal",
    "str": "a string",
    "object": "an object",
}
_GOT = {"bool": "boolean", "int": "integer", "float": "decimal", "str": "string", "null": "null"}


def _type_fault(error: msgspec.ValidationError) -> RequestFault:
    """Return what msgspec says of a wrong type in OpenAI's words."""
    text = str(error)
    match = _MISMATCH.search(text)
    if match is None:
        place = _AT.search(text)
        if place is None:
            return faults.bad_json(text)
        return faults.wrong_type(place["at"], "a number in range", "number out of range")
    got = _GOT.get(match["got"], match["got"])
    if match["at"] is None:
        return faults.bad_json(f"expected an object, but got {got}")
    expected = [_EXPECTED[kind] for kind in match["expected"].split(" | ") if kind in _EXPECTED]
    return faults.wrong_type(match["at"], " or ".join(expected), got)


def decode_body(body: bytes) -> OpenAiBody:
    """Return what matters of a body, types checked.

    Raises: RequestFault.
    """
    try:
        return _decode(body)
    except msgspec.ValidationError as error:
        raise _type_fault(error) from None
    except msgspec.DecodeError as error:
        raise faults.bad_json(str(error).removeprefix("JSON is malformed: ")) from None
    except UnicodeDecodeError as error:
        raise faults.bad_json(problem=f"invalid UTF-8 ({error.reason})") from None
    except RecursionError:
        raise faults.bad_json(problem="it is nested too deeply") from None


def check_numbers(body: OpenAiBody) -> None:
    """Check the numbers of a body.

    Raises: RequestFault for one that is out of its range.
    """
    tokens, most = body.max_completion_tokens, MOST_TOKENS
    if tokens is not None and not 1 <= tokens <= most:
        raise faults.out_of_range(param="max_completion_tokens", value=tokens, least=1, most=most)
    tokens = body.max_tokens
    if tokens is not None and not 1 <= tokens <= most:
        raise faults.out_of_range(param="max_tokens", value=tokens, least=1, most=most)
    choices, most = body.n, MOST_CHOICES
    if choices is not None and not 1 <= choices <= most:
        raise faults.out_of_range(param="n", value=choices, least=1, most=most)
    warmth, most = body.temperature, MOST_TEMPERATURE
    if warmth is not None and not 0.0 <= warmth <= most:
        raise faults.out_of_range(param="temperature", value=warmth, least=0, most=most)
