"""What is raised when an engine does not do what it was asked.

Does not know: which engine, or what was asked.
"""

from ...traces.errors import TrimtabError
from .capability import Capability


class EngineError(TrimtabError):
    """An engine did not answer, answered that it cannot, or answered nonsense."""

    def __init__(
        self, message: str, *, status: int | None = None, missing: Capability | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status, None if there was no answer."""
        self.missing = missing
        """What the engine cannot do, if that is why."""
