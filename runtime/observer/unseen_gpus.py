"""GPUs that a cluster file names and no driver shows: their rows are there, and all is absent.

A CPU that serves a replica is one of them, and so is a GPU of a server that is reached only through
its engines' pages.

Does not know: what is measured elsewhere.
"""

from ..telemetry.probes.probe import Members, Readings


class UnseenGpus:
    """A probe of GPUs that nobody can ask."""

    def __init__(self, number: int) -> None:
        self._members = Members(gpus=tuple(f"unseen-{k}" for k in range(number)))

    @property
    def members(self) -> Members:
        """The GPUs, no replicas."""
        return self._members

    def sample(self) -> Readings:
        """Return readings in which all is absent."""
        return self._members.absent()

    def close(self) -> None:
        """Hold nothing, give nothing back."""
