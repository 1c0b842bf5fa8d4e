"""The bundle that ships: a policy for any fleet, trained over many sites.

Whether it may act stands in it: the gate has judged it on unseen sites. One that may not is served
as its base, the scheduler that places by worth.

Does not know: how it was trained (`site_training.py`).
"""

from importlib import resources
from pathlib import Path

GENERALIST = "generalist"
"""Name of the bundle that ships, wherever the directory of one is asked for."""


def bundle_directory(path_or_name: Path) -> Path:
    """Return the directory that a path or the name of the bundle that ships means."""
    if str(path_or_name) == GENERALIST and not path_or_name.exists():
        return Path(str(resources.files("trimtab.agents.data").joinpath(GENERALIST)))
    return path_or_name
