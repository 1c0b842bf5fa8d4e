"""Benchmarks as modules, for the tests of what they measure.

They lie beside the package, not in it: where only the package is installed there are none, and
tests that import this are skipped.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if not BENCHMARKS.exists():
    pytest.skip("the installed package has no benchmarks", allow_module_level=True)


def load(name: str) -> ModuleType:
    """Return a benchmark, or a part of one; they import each other."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))
