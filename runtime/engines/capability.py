"""What an engine may be able to do beside answering requests.

Does not know: which engine can do what; each is asked.
"""

from enum import Flag, auto


class Capability(Flag):
    """Abilities of one running engine."""

    NONE = 0
    PRIORITY = auto()
    """Requests may say which goes first."""
    ABORT = auto()
    """A request is ended by its id. Closing its connection ends it at every engine."""
    SLEEP = auto()
    """It gives back its memory on demand, and takes it again."""
    SAVE_SESSION = auto()
    """The KV of a slot is written to a file, and read from one."""
    RESET_PREFIX_CACHE = auto()
    """It forgets all cached prefixes on demand."""
    LOAD_LORA = auto()
    """Adapters come and go while it runs."""
    PIN_SLOT = auto()
    """A request may name the slot that it runs in."""
    KV_EVENTS = auto()
    """It publishes which blocks enter and leave its prefix cache."""
    TOKENIZE = auto()
    """It turns text into token ids."""

    @property
    def label(self) -> str:
        """Names in words: `priority, sleep`."""
        return ", ".join(str(one.name).lower().replace("_", " ") for one in self) or "none"
