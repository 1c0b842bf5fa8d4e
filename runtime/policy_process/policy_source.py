"""Which policy a process runs: a bundle, a named heuristic, or knobs of a file.

Does not know: gateways.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load

from ...agents.bundle import load_bundle
from ...agents.heuristics import heuristic
from ...agents.policy import ConstantPolicy, LearnedPolicy, Policy, constant_policy
from ...agents.shield.novelty import NoveltyModel
from ...env.state.cluster_state import ClusterState
from ...traces.errors import BundleError

_LOG = logging.getLogger(__name__)
NOVELTY_NAME = "novelty.safetensors"
"""File of a bundle that says which states it was trained on; a bundle may lack it."""

Novelty = Callable[[ClusterState], float]


def no_novelty(state: ClusterState) -> float:
    """Return that nothing is known to be new."""
    return 0.0


def policy_of(bundle: Path | None, scheduler: str) -> tuple[Policy, Novelty]:
    """Return a policy, and what scores how unlike its training a state is.

    Of a bundle that the gate refused, the policy is its base.

    Raises:
        BundleError: the bundle cannot be read.
        ValueError: there is no such heuristic.
    """
    if bundle is None:
        return constant_policy(heuristic(scheduler)), no_novelty
    loaded = load_bundle(bundle)
    if not loaded.may_act:
        _LOG.warning("bundle %s: the gate refused its policy; its base steers instead", bundle)
        name = f"{bundle.name}-base"
        return ConstantPolicy(name=name, knobs=loaded.base_knobs), no_novelty
    return LearnedPolicy(loaded), _novelty_of(bundle)


def _novelty_of(bundle: Path) -> Novelty:
    path = bundle / NOVELTY_NAME
    if not path.is_file():
        return no_novelty
    try:
        return NoveltyModel.from_arrays(load(path.read_bytes())).score_state
    except (OSError, SafetensorError, ValueError) as error:
        msg = f"bundle {str(bundle)!r}: {NOVELTY_NAME}: {error}; remove it or fit it anew"
        raise BundleError(msg) from error
