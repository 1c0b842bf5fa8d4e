"""A head that was parsed before, so that the next message with the same one need not be parsed.

Who uses a connection again mostly sends the same head, byte for byte, but for the length of the
body. Only a message that is there whole and alone is recognised; all else goes to the parser.

Does not know: what a head says, or who sent it.
"""

import re

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*(?=\r\n)", re.IGNORECASE)
# Digits of a length that is looked at; the parser judges longer ones.
_MOST_DIGITS = 10


class KnownHead:
    """A head without the digits of its content-length."""

    __slots__ = ("_after", "_before", "_digits_at")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before, self._after = before, after
        self._digits_at = len(before)

    @classmethod
    def of(cls, message: bytes, body_bytes: int) -> "KnownHead | None":
        """Return the head of a message that a parser found to be whole, with so long a body.

        None if there is more or less than one message, or if its head names no length.
        """
        end = len(message) - body_bytes
        if message.find(b"\r\n\r\n") != end - 4:
            return None
        found = list(_LENGTH.finditer(message, 0, end))
        if len(found) != 1:
            return None
        first, last = found[0].span(1)
        return cls(message[:first], message[last:end])

    def body_of(self, message: bytes) -> bytes | None:
        """Return the body of a message with this head; None if it is another, or not whole."""
        first = self._digits_at
        if not message.startswith(self._before):
            return None
        last = message.find(b"\r", first, first + _MOST_DIGITS + 1)
        digits = message[first:last]
        after = self._after
        if last < 0 or not digits.isdigit() or not message.startswith(after, last):
            return None
        body_at = last + len(after)
        return message[body_at:] if len(message) - body_at == int(digits) else None
