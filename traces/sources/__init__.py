"""Importers of recorded traces, by the name that the command line gives them."""

from collections.abc import Callable

from .azure import read_azure
from .importing import BadRow, ImportResult
from .mooncake import read_mooncake
from .openai_log import read_openai_log
from .tabular import read_csv, read_jsonl

IMPORTERS: dict[str, Callable[..., ImportResult]] = {
    "azure": read_azure,
    "csv": read_csv,
    "jsonl": read_jsonl,
    "mooncake": read_mooncake,
    "openai": read_openai_log,
}

__all__ = [
    "IMPORTERS",
    "BadRow",
    "ImportResult",
    "read_azure",
    "read_csv",
    "read_jsonl",
    "read_mooncake",
    "read_openai_log",
]
