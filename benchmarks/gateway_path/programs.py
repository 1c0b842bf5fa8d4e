"""The mock engines and the load, compiled on the spot from the C files beside.

Does not know: what is measured.
"""

import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent


def compiled(name: str, directory: Path) -> Path:
    """Compile a program into a directory and return it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        msg = "the gateway benchmark needs a C compiler (cc or gcc) for its mock engines and load"
        raise SystemExit(msg)
    target = directory / name
    subprocess.run([compiler, "-O2", "-o", target, HERE / f"{name}.c", "-lm"], check=True)
    return target


def pinned(core: int, command: list[str]) -> list[str]:
    """Return a command that runs on one core, if that can be asked for."""
    taskset = shutil.which("taskset")
    return command if taskset is None else [taskset, "-c", str(core), *command]
