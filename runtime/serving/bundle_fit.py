"""Whether a bundle can serve a fleet, told by its configuration alone, without loading weights.

Does not know: weights; the policy's own process checks those.
"""

from pathlib import Path

from ...agents.bundle_config import bundle_error, check_fit, read_config
from ...env.cluster import ClusterSpec
from ...env.knobs import Knobs
from ...env.state.graph import NUM_TENANTS
from .seat import PolicyFacts


def policy_of_bundle(
    root: Path, cluster: ClusterSpec, *, source: str, can_place_by_worth: bool = True
) -> PolicyFacts:
    """Return what a gateway must know of a bundle's policy; some cannot place by worth.

    Raises:
        BundleError: it cannot be read, its features or knobs are not this code's (both hashes are
            named), its layout has too little room for the fleet, or it places by worth where that
            cannot be.
    """
    config = read_config(root)
    check_fit(root, config)
    found = {
        "replicas": (len(cluster.replicas), config.layout.max_replicas),
        "gpus": (sum(server.num_gpus for server in cluster.servers), config.layout.max_gpus),
        "servers": (len(cluster.servers), config.layout.max_servers),
        "tenants": (NUM_TENANTS, config.layout.max_tenants),
    }
    for name, (needed, room) in found.items():
        if needed > room:
            fault = f"its layout has room for {room} {name}, the fleet has {needed}"
            raise bundle_error(root, fault, "train a policy with a larger layout")
    try:
        base = Knobs.of(**config.base_knobs)
    except ValueError as error:
        raise bundle_error(root, f"base_knobs: {error}", "save the policy anew") from error
    if base["value_weight"] > 0.0 and not can_place_by_worth:
        fault = "it places by worth, and this gateway does not remember what that takes"
        raise bundle_error(root, fault, f"start the gateway with it: --bundle {root}")
    return PolicyFacts(source=source, name=str(root), base=base)
