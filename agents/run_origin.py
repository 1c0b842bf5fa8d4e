"""Where a run was made: versions of the code, and the machine in a few words.

Does not know: what was run.
"""

import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_GIT_TIMEOUT_S = 5.0


def versions() -> dict[str, str]:
    """Return the versions that a run depends on; the commit where the code is in a checkout.

    What cannot be found out is left out.
    """
    found = {"python": platform.python_version()}
    with suppress(PackageNotFoundError):
        found["trimtab"] = version("trimtab")
    commit = _commit(_ROOT)
    return found | ({"commit": commit} if commit else {})


def machine() -> str:
    """Return the number of cores and the kind of machine."""
    return f"{os.cpu_count() or 1} cores, {platform.system()} {platform.machine()}"


def _commit(root: Path) -> str | None:
    """Return a checkout's commit, with a plus where tracked files differ from it."""
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "--short", "HEAD")
    if not commit:
        return None
    return f"{commit}+" if _git(root, "status", "--porcelain", "-uno") else commit


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
