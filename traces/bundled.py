"""Recorded traces that come with the package (see `data/README.md` for their terms).

Does not know: traces elsewhere; those are imported (`sources/`) or read from a store.
"""

from importlib.resources import as_file, files
from pathlib import Path

from .schema import RequestTrace
from .sources.azure import read_azure

BUNDLED_FILES: dict[str, str] = {
    "azure-code": "azure_code.csv.gz",
    "azure-conv": "azure_conv.csv.gz",
}


def load_bundled(name: str) -> RequestTrace:
    """A recorded trace by name: "azure-conv" (chat) or "azure-code" (code completion).

    Raises: ValueError for an unknown name.
    """
    if name not in BUNDLED_FILES:
        msg = f"bundled trace must be one of {sorted(BUNDLED_FILES)}, got {name!r}"
        raise ValueError(msg)
    resource = files(__package__) / "data" / BUNDLED_FILES[name]
    with as_file(resource) as path:
        return read_azure(path).trace


def bundled_path(name: str) -> Path:
    """Return the file of a bundled trace, by its name."""
    return Path(__file__).parent / "data" / BUNDLED_FILES[name]
