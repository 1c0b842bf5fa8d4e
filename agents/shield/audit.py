"""An audit of a run after the fact: every hard constraint, looked for in what was recorded.

It goes by the requests' records, the rules, and what was in force when, and shares no code with
what enforces the rules.

Does not know: the kernel, or who set the knobs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...env.knobs import BIAS_LIMIT, HIGH_VALUES, KNOB_SPECS, LOW_VALUES, Knobs
from ...env.masks import mask_text
from ...env.restrictions import MaskArray, Restrictions
from ...env.simulated_fleet import SimulatedFleet
from ...env.simulator.layout import NONE, SHED
from .projection import KnobLimits

_TINY = 1e-6


@dataclass(frozen=True, slots=True)
class InForce:
    """Masks from a moment on."""

    at_s: float
    masks: MaskArray


@dataclass(frozen=True, slots=True)
class Setting:
    """What was set at a moment: numbers as they were, checked or not."""

    at_s: float
    values: np.ndarray
    bias: np.ndarray


def audit_placement(
    fleet: SimulatedFleet, restrictions: Restrictions, history: Sequence[InForce]
) -> list[str]:
    """Return what requests were sent where they might not go, in words.

    `history` holds the masks of the shield in order of time.
    """
    found = []
    requests, names = fleet.requests, fleet.workload.tenant_names
    moments = np.array([one.at_s for one in history])
    for row, request in enumerate(requests):
        if request["replica"] == NONE or request["status"] == SHED:
            continue
        r, tenant = int(request["replica"]), names[int(request["tenant"])]
        mask = int(restrictions.masks[restrictions.group_of(tenant), r])
        if mask:
            found.append(f"request {row} of {tenant} went to replica {r}, which {mask_text(mask)}")
        # What moved or was sent again came there at another moment than this one.
        if request["num_dispatches"] != 1 or request["num_moves"] != 0 or not moments.size:
            continue
        place = int(np.searchsorted(moments, request["ready_s"], side="right")) - 1
        barred = int(history[place].masks[r]) if place >= 0 else 0
        if barred and abs(moments[place] - request["ready_s"]) > _TINY:
            found.append(f"request {row} was sent to replica {r}, which {mask_text(barred)}")
    return found


def audit_memory(fleet: SimulatedFleet) -> list[str]:
    """Return which replicas held more KV than they have."""
    replicas = fleet.arrays.replicas
    over = np.flatnonzero(
        (replicas["free_pages"] < 0) | (replicas["peak_pages"] > replicas["total_pages"])
    )
    return [f"replica {r} held more KV pages than it has" for r in over]


def audit_knobs(
    settings: Sequence[Setting], base: Knobs, limits: KnobLimits, fallback: Knobs
) -> list[str]:
    """Return which knobs were set beyond their bounds, or faster or other than they may be.

    The fallback's own knobs may be set at any time, and left.
    """
    found: list[str] = []
    before: Setting | None = None
    for one in settings:
        found += _bound_faults(one)
        is_fallback = np.array_equal(one.values, fallback.values)
        if not is_fallback:
            fixed = np.flatnonzero(~limits.is_movable & (one.values != base.values))
            found += [f"{KNOB_SPECS[k].name} is not for a policy to move" for k in fixed]
            if before is not None:
                found += _rate_faults(before, one, limits)
        # A policy goes on from where it was itself, so a rate is of two of its own in a row.
        before = None if is_fallback else one
    return found


def _bound_faults(one: Setting) -> list[str]:
    outside = ~((one.values >= LOW_VALUES) & (one.values <= HIGH_VALUES))
    found = [f"{KNOB_SPECS[k].name} was set to {one.values[k]}" for k in np.flatnonzero(outside)]
    if not np.all(np.abs(one.bias) <= BIAS_LIMIT):
        found.append(f"a bias was set beyond {BIAS_LIMIT}")
    return found


def _rate_faults(before: Setting, after: Setting, limits: KnobLimits) -> list[str]:
    is_log = LOW_VALUES > 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        change = np.where(
            is_log,
            np.abs(np.log(np.abs(after.values) / np.abs(before.values))),
            np.abs(after.values - before.values),
        )
    most = np.where(
        np.isfinite(limits.change_per_s), limits.change_per_s * (after.at_s - before.at_s), np.inf
    )
    too_fast = limits.is_movable & ~(change <= most + _TINY)
    return [f"{KNOB_SPECS[k].name} moved faster than it may" for k in np.flatnonzero(too_fast)]
