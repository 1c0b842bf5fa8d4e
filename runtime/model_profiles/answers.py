"""Answers of the routes, all JSON.

Does not know: requests.
"""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from aiohttp import web

from ...env.file_fault import Fault
from ...env.model_figures import model_figures
from ...env.model_shape import ModelProfile
from ...env.model_store import StoredVersion, is_shadowed


def fault_answer(status: int, key: str, text: str) -> web.Response:
    """An answer with one fault."""
    return faults_answer(status, (Fault(key, text),))


def faults_answer(status: int, faults: Iterable[Fault]) -> web.Response:
    """An answer with all faults: key, text, and line where there is one."""
    return web.json_response({"faults": [fault._asdict() for fault in faults]}, status=status)


def model_summary(profile: ModelProfile) -> dict[str, Any]:
    """What a client needs to use a model: its key above all."""
    summary: dict[str, Any] = {
        "model": profile.key,
        "name": profile.name,
        "version": profile.version,
    }
    if is_shadowed(profile):
        summary["note"] = (
            f"the bare name {profile.name!r} stays the model that comes with the package; "
            f"say {profile.key!r} for this one"
        )
    return summary


def model_answer(profile: ModelProfile) -> dict[str, Any]:
    """A model in full: its sizes, and what they come to."""
    return {
        **model_summary(profile),
        "sizes": _plain(profile),
        "figures": asdict(model_figures(profile)),
    }


def version_answer(stored: StoredVersion) -> dict[str, Any]:
    """One version of a model's history."""
    return {
        **model_summary(stored.profile),
        "stored_at": stored.stored_at.isoformat(),
        "changes": list(stored.changes),
    }


def _plain(profile: ModelProfile) -> dict[str, Any]:
    sizes = asdict(profile)
    if profile.recommended_batch is not None:
        sizes["recommended_batch"] = profile.recommended_batch._asdict()
    return sizes
