"""How well the aggregators know the probes' clocks, against the truth that the fleet has.

Does not know: how they found out.
"""

import numpy as np

from trimtab.runtime.telemetry.aggregator import Aggregator
from trimtab.runtime.telemetry.simulated_probes import SimulatedProbes


def clock_errors(
    aggregators: dict[str, Aggregator], probes: SimulatedProbes, now_s: float
) -> dict[str, float]:
    """Return errors of offsets and drifts, and how often the truth lies beyond the bound."""
    true_s = probes.clocks.offset_s(now_s)
    layout = probes.layout
    estimators = [one.clocks.clock for one in aggregators.values()]
    estimated_s = np.concatenate([one.offset_s(now_s) for one in estimators])
    bounds_s = np.concatenate([one.error_bound_s(now_s) for one in estimators])
    drifts = np.concatenate([one.drift for one in estimators])
    is_measured = np.isfinite(estimated_s) & ~probes.has_false_clock
    errors_s = np.abs(estimated_s - true_s)[is_measured]
    return {
        "clock_known_frac": float(is_measured.sum() / (~probes.has_false_clock).sum()),
        "clock_offset_max_s": float(np.abs(true_s).max()),
        "clock_error_max_s": float(errors_s.max(initial=0.0)),
        "clock_error_p99_s": float(np.quantile(errors_s, 0.99) if errors_s.size else 0.0),
        "clock_bound_max_s": float(bounds_s[is_measured].max(initial=0.0)),
        "clock_bound_broken": float((errors_s > bounds_s[is_measured]).sum()),
        "clock_drift_error_max": float(
            np.abs(drifts - probes.clocks.drifts)[is_measured].max(initial=0.0)
        ),
        "clock_num_probes": float(layout.num_servers),
    }
