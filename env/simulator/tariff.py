"""The bill: energy times the price and the carbon intensity of its moment.

A tariff holds between two changes; at a change every replica of the zone is billed for the energy
since the last one. An iteration under way at that moment is billed at the new tariff.

Does not know: where tariffs come from (`..energy_prices`).
"""

from ..compiled import compiled
from .calls import advance
from .memory import replicas_of


@compiled
def settle(replica):
    """Bill the energy used since the last bill at the tariff in force."""
    energy_j = replica.energy_j - replica.billed_j
    replica.cost_usd += energy_j * replica.usd_per_j
    replica.carbon_g += energy_j * replica.g_per_j
    replica.billed_j = replica.energy_j


@compiled
def change_tariff(sim, tariff, value, now_s, is_price):
    """Let a price or a carbon intensity hold from here on."""
    for r in range(sim.num_replicas):
        replica = replicas_of(sim)[r]
        if replica.tariff == tariff:
            advance(sim, r, now_s, True)
            settle(replica)
            if is_price:
                replica.usd_per_j = value
            else:
                replica.g_per_j = value
