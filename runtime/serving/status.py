"""How a gateway stands, as plain values for people, tests and tools.

Does not know: HTTP, or how anything came to be as it is.
"""

import math
from typing import TYPE_CHECKING, Any

from ...env.masks import mask_text
from .seat import Seat

if TYPE_CHECKING:
    from .server import Server


def status_of(server: "Server") -> dict[str, Any]:
    """Return how things stand; what is no number is None."""
    dispatcher = server.dispatcher
    return {
        "fleet_file": str(server.config.fleet_path.absolute()),
        **_steering(server),
        "knob_version": dispatcher.knob_version,
        "policy_version": dispatcher.policy_version,
        "replicas": _replicas(server),
        "requests": _requests(server),
        "children": {
            name: {"pid": child.pid, "restarts": child.num_restarts, "frozen": child.num_frozen}
            for name, child in server.children.items()
        },
        "plan": {
            "made": {str(kind): number for kind, number in server.plan.num_made.items()},
            "refused": dict(server.plan.num_refused),
        },
        "late_ticks": server.num_late_ticks,
        "worst_tick_s": server.worst_tick_s,
        "failures": {pacer.name: pacer.lag.num_failures for pacer in server.pacers},
        "is_draining": server.gateway.is_draining,
    }


def _steering(server: "Server") -> dict[str, Any]:
    steering, counts = server.steering, server.steering.counts
    seat = steering.seat
    return {
        "ruler": str(steering.ruler),
        "scheduler": steering.config.scheduler_name,
        "policy": None if seat is None else seat.policy.name,
        "candidate": None if steering.candidate is None else steering.candidate.name,
        "doubt": None if steering.doubt is None else str(steering.doubt),
        "doubts": {str(doubt): number for doubt, number in counts.doubts.items()},
        "windows": counts.num_windows,
        "policy_windows": counts.num_policy_windows,
        "overrides": counts.num_overrides,
        "swaps": counts.num_swaps,
        "rollout": None if seat is None else _rollout(seat),
        "knobs": steering.knobs.as_dict(),
    }


def _rollout(seat: Seat) -> dict[str, Any] | None:
    promotion = seat.promotion
    if promotion is None:
        return None
    figures = {
        name: value if math.isfinite(value) else None for name, value in promotion.figures().items()
    }
    return {
        "phase": str(promotion.phase),
        "progress_frac": promotion.progress_frac,
        "rule": str(promotion.config.rule),
        "unmet": list(promotion.unmet()),
        "figures": figures,
    }


def _replicas(server: "Server") -> list[dict[str, Any]]:
    now_s = server.clock()
    found = []
    views = server.dispatcher.views
    for index, spec in enumerate(server.dispatcher.cluster.replicas):
        view, page_at_s = views[index], float(server.control.page_at_s[index])
        is_available = bool(view["is_available"])
        found.append(
            {
                "name": spec.name,
                "state": server.orders.state(index, is_available=is_available),
                "is_available": is_available,
                "outstanding": int(view["outstanding_requests"]),
                "mask": int(view["mask"]),
                "may_take": mask_text(int(view["mask"])),
                "page_age_s": None if math.isnan(page_at_s) else now_s - page_at_s,
            }
        )
    return found


def _requests(server: "Server") -> dict[str, float]:
    totals = server.dispatcher.totals
    return {
        "arrived": totals.num_arrived,
        "placed": totals.num_placed,
        "finished": totals.num_finished,
        "failed": totals.num_failed,
        "aborted": totals.num_aborted,
        "refused": totals.num_refused,
        "shed": totals.num_shed,
        "open": totals.num_open,
        "retried": totals.num_retried,
        "credit": totals.credit,
        "arrived_weight": totals.arrived_weight,
    }
