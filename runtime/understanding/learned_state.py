"""What a reader learns, and how it outlives a restart.

Does not know: requests.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ...agents.output_length import new_lengths
from ...agents.prompt_clusters import new_clusters
from ...traces.atomic import replace_file
from ...traces.errors import ConfigError
from .token_estimate import new_estimates

_FORMAT = "1"


@dataclass(frozen=True, slots=True)
class LearnedState:
    """Records that compiled code changes in place: token weights, clusters, answer lengths.

    Shapes: `tokens` [models * NUM_KINDS], the others [1].
    """

    tokens: NDArray[np.void]
    clusters: NDArray[np.void]
    lengths: NDArray[np.void]

    @classmethod
    def new(cls, num_models: int) -> "LearnedState":
        """What is believed before anything was seen."""
        return cls(new_estimates(num_models), new_clusters(), new_lengths())

    def addresses(self) -> list[tuple[int, int, int]]:
        """Addresses of the three records, for each model and kind of content."""
        first, clusters, lengths = (records.ctypes.data for records in self.records())
        size = self.tokens.itemsize
        return [(first + row * size, clusters, lengths) for row in range(self.tokens.size)]

    def records(self) -> tuple[NDArray[np.void], NDArray[np.void], NDArray[np.void]]:
        """All that is kept."""
        return self.tokens, self.clusters, self.lengths

    def save(self, path: Path) -> None:
        """Write all that was learned to a safetensors file, whole or not at all."""
        arrays = {name: np.ascontiguousarray(value) for name, value in self._arrays()}
        replace_file(path, save(arrays, metadata={"format": _FORMAT}))

    @classmethod
    def load(cls, path: Path, num_models: int) -> "LearnedState":
        """Read what was learned.

        Raises: ConfigError if the file is not of this kind, or of another number of models.
        """
        state = cls.new(num_models)
        try:
            stored = load(path.read_bytes())
        except (OSError, SafetensorError) as error:
            msg = f"learned state '{path}' cannot be read: {error}; remove it to begin anew"
            raise ConfigError(msg) from error
        for name, value in state._arrays():
            found = stored.get(name)
            if found is None or found.shape != value.shape or found.dtype != value.dtype:
                shape = None if found is None else found.shape
                msg = (
                    f"learned state '{path}' has '{name}' of shape {shape}, expected "
                    f"{value.shape} (a fleet of {num_models} models); remove it to begin anew"
                )
                raise ConfigError(msg)
            value[...] = found
        return state

    def _arrays(self) -> Iterator[tuple[str, NDArray[np.generic]]]:
        """Name and values of every field of every record, but the tags of their sources."""
        for part in fields(self):
            records = getattr(self, part.name)
            for name in records.dtype.names or ():
                if not name.startswith("source_"):
                    yield f"{part.name}.{name}", records[name]
