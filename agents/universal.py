"""The universal schedulers: knobs tuned over many sites, so that they are good at any.

Two vectors ship: one of the analytic scorer, and one that places by the worth that the value
network's closed form foretells. Both are free of units, hence the same for all models and GPUs.

Does not know: how they were found (`site_tuning.py`).
"""

import json
from functools import cache
from importlib import resources
from typing import Any

from ..env.knobs import ANALYTIC_SCORER_KNOBS, Knobs

_FILE = "universal.json"


@cache
def universal_file() -> dict[str, Any]:
    """Return the file that ships: vectors by name, and how they were found."""
    text = resources.files("trimtab.agents.data").joinpath(_FILE).read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def universal_scorer() -> Knobs:
    """Return the analytic scorer's knobs that were tuned over training sites."""
    return ANALYTIC_SCORER_KNOBS.replace(universal_file()["scorer"]["knobs"])


def universal_worth() -> Knobs:
    """Return the knobs that place by worth, tuned over training sites."""
    knobs: dict[str, float] = universal_file()["worth"]["knobs"]
    return universal_scorer().replace({"value_weight": 1.0, **knobs})
