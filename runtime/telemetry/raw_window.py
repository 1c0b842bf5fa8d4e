"""What a rack's probes sent in one tick of its aggregator, as arrays.

Does not know: where the samples came from, or what is derived from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...env.state.feature import FloatArray
from .raw_signal import Scope

RawArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RawWindow:
    """The samples of a tick, by scope.

    Shapes: `RawArray` [servers, entities, signals of the scope], padded to the entities of the
    largest server, NaN where absent; a server without a sample in the tick keeps its last one.
    """

    last: Mapping[Scope, RawArray]
    """The newest sample."""
    minimum: Mapping[Scope, RawArray]
    maximum: Mapping[Scope, RawArray]
    mean: Mapping[Scope, RawArray]
    previous_last: Mapping[Scope, RawArray]
    """The newest sample of the tick before."""
    last_at_s: FloatArray
    """[servers]: when `last` was taken, in hub time; NaN if never."""
    previous_at_s: FloatArray
    """[servers]: when `previous_last` was taken, in hub time; NaN if never."""
