"""What the wheel holds: every package on disk, nothing else at the root, and the data files."""

import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

import trimtab

ROOT = Path(trimtab.__file__).parent
ROOMS = ("agents", "env", "graph_encoder", "runtime", "scripts", "traces")
needs_checkout = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").exists(), reason="the installed package has no pyproject.toml"
)


@needs_checkout
def test_packages_listed_are_packages_on_disk() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    on_disk = {
        ".".join(("trimtab", *file.parent.relative_to(ROOT).parts))
        for room in ROOMS
        for file in (ROOT / room).rglob("__init__.py")
    }
    assert sorted(listed) == sorted({"trimtab", *on_disk})


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {file.parent for room in ROOMS for file in (ROOT / room).rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_root_has_no_other_module() -> None:
    assert sorted(file.name for file in ROOT.glob("*.py")) == ["__init__.py", "__main__.py"]


@needs_checkout
def test_tests_have_no_packages_and_unique_names() -> None:
    tests = [file for file in (ROOT / "tests").rglob("*.py") if file.name != "conftest.py"]
    assert not [str(file) for file in tests if file.name == "__init__.py"]
    names = [file.name for file in tests]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    "place",
    [
        "py.typed",
        "agents/data/library.json",
        "env/data/clusters/demo-16.yaml",
        "runtime/telemetry/probes/data/README.md",
        "runtime/telemetry/probes/data/synthetic-2gpu.npz",
        "traces/data/README.md",
        "traces/data/azure_code.csv.gz",
        "traces/data/azure_conv.csv.gz",
    ],
)
def test_data_is_shipped(place: str) -> None:
    assert files("trimtab").joinpath(place).is_file()


@needs_checkout
def test_data_files_ship_and_nothing_else_does() -> None:
    """Patterns of the root would follow the link in `build` into itself, over and over."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]
    assert patterns["trimtab"] == ["py.typed"]
    assert "*" not in patterns
    shipped = {
        path
        for package, globs in patterns.items()
        for glob in globs
        for path in ROOT.joinpath(*package.split(".")[1:]).glob(glob)
    }
    endings = {".yaml", ".json", ".npz", ".gz", ".safetensors"}
    data = {path for room in ROOMS for path in (ROOT / room).rglob("*") if path.suffix in endings}
    assert data <= shipped
