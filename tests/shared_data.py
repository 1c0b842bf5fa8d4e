"""Where data that is too large or not ours to ship lies: traces, profiles, pages of engines.

Beside the checkout, or where TRIMTAB_SHARED says; tests that need it are skipped where it is not.
"""

import os
from pathlib import Path

import trimtab

SHARED = Path(
    os.environ.get("TRIMTAB_SHARED", Path(trimtab.__file__).resolve().parents[1] / "shared")
)
