"""Makes the arrays of the lookahead: mirrors, lengths, the network's weights, and scratch.

Does not know: how a placement is judged (`..lookahead`, `..value`), or when.
"""

from dataclasses import replace

import numpy as np

from ..knobs import Knobs
from ..lookahead.decide import CHOICE_DTYPE
from ..lookahead.mirror_arrays import empty_mirrors, mirror_arrays
from ..lookahead.settings import (
    MAX_CANDIDATES,
    NETWORK_CANDIDATES,
    Judge,
    LookaheadSettings,
    no_lookahead,
)
from ..lookahead.situation import JOB_DTYPE, RUN_DTYPE, make_lists
from ..value.features import SUMS_DTYPE
from ..value.labels import LABEL_DTYPE, LabelSettings
from ..value.network import NUM_SCRATCH, ValueNetwork, closed_form
from .layout import NUM_PRIORITIES

Judges = tuple[LookaheadSettings | None, ValueNetwork | None, LabelSettings | None]
"""By what placements are judged, and what is noted of it."""


def judges_of(
    lookahead: LookaheadSettings | None,
    value: ValueNetwork | None,
    labels: LabelSettings | None,
    knobs: Knobs,
) -> Judges:
    """Return by what placements are judged; knobs at the start may ask for the closed form."""
    if value is None and lookahead is None and knobs["value_weight"] > 0.0:
        value = closed_form()
    return lookahead, value, labels


def _settings_record(
    settings: LookaheadSettings | None, value: ValueNetwork | None, labels: LabelSettings | None
) -> np.ndarray:
    """Return the lookahead's record; it is off where nothing asks for it."""
    if settings is None and value is None and labels is None:
        return no_lookahead()
    settings = settings or LookaheadSettings(num_candidates=NETWORK_CANDIDATES)
    if labels is not None:
        settings = replace(
            settings, num_candidates=labels.num_candidates, num_samples=labels.num_samples
        )
    record = settings.record()
    record["judge"] = Judge.ROLLOUTS if value is None else Judge.NETWORK
    if labels is not None:
        record["judge"], record["label_every"] = labels.behaviour, labels.every
        if labels.behaviour is Judge.NETWORK and value is None:
            msg = "labels with the network's behaviour need a value network; set value"
            raise ValueError(msg)
    return record


def lookahead_arrays(
    judges: Judges,
    replicas: np.ndarray,
    num_gateways: int,
    page_tokens: int,
    mean_output_tokens: float,
) -> dict[str, np.ndarray]:
    """Return the arrays of the lookahead by their names, next to nothing where it is off.

    Shapes: `replicas` REPLICA_DTYPE [R].
    """
    _, value, labels = judges
    record = _settings_record(*judges)
    kept = mirror_arrays(
        empty_mirrors(
            replicas["max_num_seqs"],
            replicas["max_batch_tokens"],
            page_tokens,
            (replicas["total_pages"] - replicas["reserve_pages"]) * page_tokens,
        ),
        num_gateways=num_gateways,
        num_priorities=NUM_PRIORITIES,
        mean_output_tokens=mean_output_tokens,
        is_on=bool(record["num_candidates"][0] > 0),
    )
    num_rows = kept["mirror_rows"].shape[1]
    return {
        **kept,
        "lookahead": record,
        "ahead_choices": np.zeros(MAX_CANDIDATES, dtype=CHOICE_DTYPE),
        "ahead_run": np.zeros(1, dtype=RUN_DTYPE),
        "ahead_jobs": np.zeros(num_rows + 1, dtype=JOB_DTYPE),
        "ahead_lists": make_lists(num_rows + 1),
        "value_weights": np.zeros(1, np.float32) if value is None else value.weights,
        "value_sums": np.zeros(1, dtype=SUMS_DTYPE),
        "value_scratch": np.zeros(NUM_SCRATCH, np.float32),
        "labels": np.zeros(1 if labels is None else labels.most_labels, dtype=LABEL_DTYPE),
    }


__all__ = ["Judges", "judges_of", "lookahead_arrays"]
