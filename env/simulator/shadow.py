"""Shadow regret in a simulation: every n-th request is also placed by other knobs, on paper only.

The choice that rules, its random stream and its scratch are left alone; so is everything if the
shadow is off. Only the first placement of a request is compared, not where it decodes.

Does not know: who asks, or what follows from a regret.
"""

import numpy as np

from ..compiled import compiled
from ..knobs import Knobs
from ..regret import Regret, regret_of
from ..shadow import JUDGE_KNOBS, add_difference, is_expected_to_meet, shadow_choice
from .layout import SHADOW_DTYPE, SimulationArrays
from .memory import (
    fleet_of,
    group_costs_of,
    hits_of,
    judge_of,
    nominal_of,
    penalties_of,
    requests_of,
    shadow_bias_of,
    shadow_costs_of,
    shadow_factors_of,
    shadow_knobs_of,
    shadow_of,
    shadow_random_of,
    terms_of,
    views_of,
)

# Seed of the shadow's own random stream, which nothing else draws from.
_RANDOM_SEED = 0x5AD0


@compiled
def _expected(sim, g, query, now_s, is_placed, r):
    """Return 1 if a choice is expected to meet the request's limits, else 0."""
    if not is_placed:
        return 0.0
    is_met = is_expected_to_meet(
        views_of(sim, g), nominal_of(sim), query, hits_of(sim), judge_of(sim), now_s, r
    )
    return 1.0 if is_met else 0.0


@compiled
def compare(sim, index, now_s, is_placed, replica):
    """Compare a choice that was just made, and not carried out yet, with the shadow's."""
    shadow, request = shadow_of(sim), requests_of(sim)[index]
    shadow.num_seen += 1
    if shadow.num_seen % shadow.every != 0:
        return
    query, g = request.query, request.gateway
    costs, bias = shadow_costs_of(sim), shadow_bias_of(sim)
    own, penalties = group_costs_of(sim, query.group), penalties_of(sim)
    for r in range(costs.size):
        costs[r] = own[r] + (bias[r] + penalties[r])
    is_shadow_placed, shadow_replica = shadow_choice(
        views_of(sim, g), nominal_of(sim), query, hits_of(sim), shadow_knobs_of(sim), costs,
        now_s, shadow.cursor, shadow_random_of(sim), fleet_of(sim).shed_limits,
        (terms_of(sim), shadow_factors_of(sim)),
    )  # fmt: skip
    if is_shadow_placed:
        shadow.cursor = (shadow_replica + 1) % costs.size
    difference = _expected(sim, g, query, now_s, is_shadow_placed, shadow_replica)
    difference -= _expected(sim, g, query, now_s, is_placed, replica)
    add_difference(shadow, request.weight, difference)


def shadow_arrays(num_replicas: int) -> dict[str, np.ndarray]:
    """Return the arrays of a shadow that is off."""
    return {
        "shadow": np.zeros(1, dtype=SHADOW_DTYPE),
        "shadow_knobs": Knobs().record(),
        "judge": JUDGE_KNOBS.record(),
        "shadow_bias": np.zeros(num_replicas),
        "shadow_costs": np.zeros(num_replicas),
        "shadow_factors": np.zeros(num_replicas),
        "shadow_random": np.full(1, _RANDOM_SEED, dtype=np.uint64),
    }


def set_shadow(arrays: SimulationArrays, knobs: Knobs | None, every: int) -> None:
    """Compare every n-th request with other knobs from here on; None: no more.

    Raises:
        ValueError: `every` is below 1.
    """
    if every < 1:
        msg = f"every must be at least 1 request, got {every}"
        raise ValueError(msg)
    arrays.shadow["every"] = 0 if knobs is None else every
    if knobs is not None:
        arrays.shadow_knobs[:] = knobs.record()
        arrays.shadow_bias[:] = 0.0
        arrays.shadow_bias[: knobs.replica_bias.size] = knobs.replica_bias


def take_regret(arrays: SimulationArrays) -> Regret:
    """Return the regret since it was last taken, and begin anew."""
    return regret_of(arrays.shadow)
