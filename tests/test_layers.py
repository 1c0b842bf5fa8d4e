"""Rooms import down only, and each other relatively."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import trimtab

ROOT = Path(trimtab.__file__).parent
# From the highest floor to the lowest.
ROOMS = ("scripts", "runtime", "agents", "graph_encoder", "env", "traces")
MODULES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))


def imported_rooms(file: Path) -> Iterator[tuple[int, str]]:
    """Line and first part below `trimtab` of every import from the package."""
    here = file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        above = here[: len(here) - (node.level - 1)]
        named = node.module.split(".") if node.module else []
        targets = [[*above, *named]] if above or named else [[a.name] for a in node.names]
        yield from ((node.lineno, target[0]) for target in targets)


def absolute_imports(file: Path) -> list[int]:
    """Lines that import `trimtab` by its own name."""
    lines = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        lines += [node.lineno for name in names if name.split(".")[0] == "trimtab"]
    return lines


def test_every_room_has_modules() -> None:
    assert {file.relative_to(ROOT).parts[0] for file in MODULES} == set(ROOMS)


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_run_down(file: Path) -> None:
    floor = ROOMS.index(file.relative_to(ROOT).parts[0])
    climbs = [
        f"line {line} imports {room}"
        for line, room in imported_rooms(file)
        if room in ROOMS and ROOMS.index(room) < floor
    ]
    assert not climbs
    assert not absolute_imports(file)


def test_finds_a_climbing_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "env" / "inner" / "planted.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import trimtab.agents\nfrom trimtab import env\nfrom ...agents import policy\n"
        "from ..knobs import Knobs\nfrom ... import scripts\nfrom .near import x\n"
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert list(imported_rooms(file)) == [(3, "agents"), (4, "env"), (5, "scripts"), (6, "env")]
    assert absolute_imports(file) == [1, 2]
