"""Files of tuned knobs: a JSON object `{"knob": value}`, as `trimtab tune` writes it.

Does not know: who sets the knobs.
"""

import json
from pathlib import Path

from ..env.knobs import Knobs
from ..traces.errors import ConfigError
from .heuristics import ANALYTIC_SCORER


def read_knobs(path: Path) -> Knobs:
    """Return the analytic scorer's knobs with those of a JSON file in their place.

    Raises:
        ConfigError: the file is no object of numbers, or a name or value is not a knob's.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"knob file '{path}' cannot be read as JSON: {error}"
        raise ConfigError(msg) from error
    if not isinstance(content, dict):
        msg = f"knob file '{path}' holds no object; expected {{\"backlog\": 1.2, ...}}"
        raise ConfigError(msg)
    for name, value in content.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            msg = f"knob file '{path}': '{name}' is {value!r}; expected a number"
            raise ConfigError(msg)
    try:
        return ANALYTIC_SCORER.knobs.replace(content)
    except ValueError as error:
        msg = f"knob file '{path}': {error}"
        raise ConfigError(msg) from error
