"""A cache of capacities of the tests' own."""

from pathlib import Path

import pytest

from trimtab.env.sites.capacity import site_capacity


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    site_capacity.cache_clear()
