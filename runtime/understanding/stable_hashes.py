"""Hashes of names that are the same in every process, remembered.

Does not know: what is named.
"""

from hashlib import blake2b

_63_BITS = 0x7FFFFFFFFFFFFFFF


def stable_hash(name: bytes | str) -> int:
    """Return a hash of 63 bits, 0 for no name."""
    if not name:
        return 0
    if isinstance(name, str):
        name = name.encode()
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "little") & _63_BITS


class StableHashes:
    """Remembers the hashes of the names that come again, of a bounded number of names."""

    def __init__(self, most_names: int = 4096) -> None:
        self._most_names = most_names
        self._hashes: dict[bytes | str, int] = {}

    def __call__(self, name: bytes | str) -> int:
        """Return `stable_hash` of a name."""
        hashed = self._hashes.get(name)
        if hashed is None:
            if len(self._hashes) >= self._most_names:
                self._hashes.clear()
            hashed = self._hashes[name] = stable_hash(name)
        return hashed
