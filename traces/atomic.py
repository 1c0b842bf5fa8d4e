"""Directories and files that appear whole or not at all.

Does not know: what is written.
"""

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path


def write_directory(target: Path, files: Mapping[str, bytes]) -> None:
    """Write files to a temporary sibling and rename it to `target`, replacing what is there.

    If anything fails, what was there stays as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex
    new = target.with_name(f".{target.name}.{token}.new")
    old = target.with_name(f".{target.name}.{token}.old")
    new.mkdir()
    try:
        for name, content in files.items():
            with (new / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if target.exists():
            target.rename(old)
        new.rename(target)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def replace_file(target: Path, content: bytes) -> None:
    """Write a file in place of what is there; nobody sees half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.{uuid.uuid4().hex}.new")
    try:
        with new.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)


def write_new_file(target: Path, content: bytes) -> bool:
    """Write a file that must not be there yet; return False, and change nothing, if it is.

    Of several writers at the same time one has its way, and nobody sees half of a file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.{uuid.uuid4().hex}.new")
    try:
        with new.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        target.hardlink_to(new)
    except FileExistsError:
        return False
    finally:
        new.unlink(missing_ok=True)
    return True
