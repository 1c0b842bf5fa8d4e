"""The learned policy: a graph encoder with heads that treat every replica alike, for SB3's PPO.

The action moves a scheduler that is already good: residuals of its tunable knobs and a small bias
for each replica (`env/knobs.py`). All heads end in zeros, so that the untrained policy is that
scheduler. No parameter depends on the padded sizes: one state dict serves fleets of any size.

Does not know: the scheduler that it moves, the environment, or training.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn
from torch.nn.functional import linear

from ..env.knobs import TUNABLE_KNOBS
from ..env.observation import CLIP
from ..env.vector_env import FUTURE
from ..graph_encoder.extractor import NUM_POOLED_PARTS, GraphExtractor, split_features

KNOB_LOG_STD = -0.9
"""Initial log standard deviation of the knob residuals. Source: research/prototype.md, 8.4."""
BIAS_LOG_STD = -1.6
"""Initial log standard deviation of the replica biases. Source: the same."""
HEAD_SIZE = 64
"""Hidden units of each head."""
_FIXED_ARGUMENTS: dict[str, Any] = {
    "net_arch": [],
    "features_extractor_class": GraphExtractor,
    "share_features_extractor": False,
    "use_sde": False,
}


class EquivariantHead(nn.Module):
    """Map features of `GraphExtractor` to an action; permuted replicas give permuted biases.

    Shapes (B batch, N padded replicas, K tunable knobs): flat features -> [B, K + N], 0 for
    padded replicas.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        pooled_size = NUM_POOLED_PARTS * hidden_size
        self.knobs = _mlp(pooled_size, len(TUNABLE_KNOBS), is_zero=True)
        self.bias = _mlp(hidden_size + pooled_size, 1, is_zero=True)

    def forward(self, features: Tensor) -> Tensor:
        """Return the mean action."""
        fleet = split_features(features, self.hidden_size)
        first = self.bias[0]
        assert isinstance(first, nn.Linear), f"first layer is {first}"
        own, shared = first.weight[:, : self.hidden_size], first.weight[:, self.hidden_size :]
        # The layer over [replica, pool] in two parts, as all replicas share the second.
        part = linear(fleet.pooled, shared, first.bias).unsqueeze(1)  # [B, 1, 64]
        biases = self.bias[1:](linear(fleet.replicas, own) + part).squeeze(2)  # [B, N]
        biases = biases.masked_fill(~fleet.replica_mask, 0.0)
        return torch.cat([self.knobs(fleet.pooled), biases], dim=1)


class ValueHead(nn.Module):
    """Map the last of the features to a value, [B, 1]: of `GraphExtractor`, the pooled part."""

    def __init__(self, input_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.value = _mlp(input_size, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the value."""
        value: Tensor = self.value(features[:, -self.input_size :])
        return value


class PooledFeatures(BaseFeaturesExtractor):
    """What a critic in training reads, without a graph: half of a training's time otherwise.

    Mean and largest of the replicas' features, those of tenants and the fleet, the last residuals,
    and what is still to come where observations have the key `future`.
    """

    def __init__(self, observation_space: spaces.Dict) -> None:
        sizes = {key: spaces.flatdim(box) for key, box in observation_space.spaces.items()}
        self.keys = [key for key in ("tenant", "fleet", FUTURE) if key in sizes]
        self.num_replicas = sizes["replica_mask"]
        self.num_features = sizes["replica"] // self.num_replicas
        size = 2 * self.num_features + len(TUNABLE_KNOBS) + sum(sizes[key] for key in self.keys)
        super().__init__(observation_space, size)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Return the features, [B, size]."""
        rows = observations["replica"].view(-1, self.num_replicas, self.num_features)
        mask = observations["replica_mask"].unsqueeze(2)
        mean = (rows * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)
        largest = rows.masked_fill(mask < 0.5, -CLIP).amax(dim=1)
        residuals = observations["action"][:, : len(TUNABLE_KNOBS)]
        return torch.cat(
            [mean, largest, residuals, *(observations[key] for key in self.keys)], dim=1
        )


class MaskedGaussian(DiagGaussianDistribution):
    """A diagonal Gaussian whose padded dimensions are 0 and count for nothing.

    Without the mask, noise that no replica feels would enter PPO's ratio, entropy and the
    gradient of the shared standard deviation.
    """

    def __init__(self, mask: Tensor) -> None:
        """Take the mask of real dimensions, 1 or 0, [B, action size]."""
        super().__init__(mask.shape[1])
        self.mask = mask

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return the log probability of the real dimensions, [B]."""
        log_prob: Tensor = self.distribution.log_prob(actions)  # type: ignore[no-untyped-call]
        return (log_prob * self.mask).sum(dim=1)

    def entropy(self) -> Tensor:
        """Return the entropy of the real dimensions, [B]."""
        entropy: Tensor = self.distribution.entropy()  # type: ignore[no-untyped-call]
        return (entropy * self.mask).sum(dim=1)

    def sample(self) -> Tensor:
        """Return a sample, 0 in padded dimensions."""
        return self.distribution.rsample() * self.mask


class EquivariantPolicy(ActorCriticPolicy):
    """Actor and critic for `PPO(EquivariantPolicy, ...)`, each with an encoder of its own.

    Set the hidden size with `features_extractor_kwargs={"hidden_size": 32}`. With `moved`, only
    some dimensions of the action are explored and learned: the others stay 0. With
    `has_pooled_critic` the critic reads `PooledFeatures`, and so the key `future` of observations,
    if there is one; the actor never does.

    Shapes: `moved` [tunable knobs + 1], the last for the biases of all replicas.

    Raises:
        ValueError: an argument of the base class that this policy fixes, or a wrong action space.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        moved: Sequence[bool] | None = None,
        has_pooled_critic: bool = False,
        **arguments: Any,
    ) -> None:
        for name, value in _FIXED_ARGUMENTS.items():
            if arguments.setdefault(name, value) != value:
                msg = (
                    f"{name} must be {value} for EquivariantPolicy, got {arguments[name]}; omit it"
                )
                raise ValueError(msg)
        num_replicas = spaces.flatdim(observation_space["replica_mask"])
        expected = (len(TUNABLE_KNOBS) + num_replicas,)
        if action_space.shape != expected:
            msg = (
                f"action space must have shape {expected} (tunable knobs, then padded replicas), "
                f"got {action_space.shape}; use ObservationLayout.action_size"
            )
            raise ValueError(msg)
        if moved is not None and len(moved) != len(TUNABLE_KNOBS) + 1:
            msg = f"moved must have {len(TUNABLE_KNOBS) + 1} entries, got {len(moved)}"
            raise ValueError(msg)
        self.has_pooled_critic = has_pooled_critic
        self.moved = tuple(moved) if moved is not None else (True,) * (len(TUNABLE_KNOBS) + 1)
        super().__init__(observation_space, action_space, lr_schedule, **arguments)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        extractor = self.pi_features_extractor
        assert isinstance(extractor, GraphExtractor), f"fixed argument changed to {extractor}"
        self.hidden_size = extractor.hidden_size
        self.action_net = EquivariantHead(self.hidden_size)
        critic_size = NUM_POOLED_PARTS * self.hidden_size
        if self.has_pooled_critic:
            space = cast("spaces.Dict", self.observation_space)
            self.vf_features_extractor = PooledFeatures(space)
            critic_size = self.vf_features_extractor.features_dim
        self.value_net = ValueHead(critic_size)  # type: ignore[assignment]
        # the last entry is shared by the biases of all replicas
        self.log_std = nn.Parameter(
            torch.tensor([KNOB_LOG_STD] * len(TUNABLE_KNOBS) + [BIAS_LOG_STD])
        )
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    def start_from(self, actor: nn.Module) -> None:
        """Take the weights of a bundle's actor, to learn on from there.

        Raises:
            ValueError: it is of another size.
        """
        state = actor.state_dict()
        for part, module in (("extractor", self.pi_features_extractor), ("head", self.action_net)):
            prefix = f"{part}."
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            try:
                module.load_state_dict(own)
            except RuntimeError as error:
                msg = (
                    f"the bundle's {part} does not fit a policy of hidden size "
                    f"{self.hidden_size}; use the hidden size that it was trained with"
                )
                raise ValueError(msg) from error

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> MaskedGaussian:
        replica_mask = split_features(latent_pi, self.hidden_size).replica_mask  # [B, N]
        moved = replica_mask.new_tensor(self.moved)
        is_knob = moved[:-1].expand(replica_mask.shape[0], -1)
        replica_mask = replica_mask & moved[-1]
        bias_log_std = self.log_std[-1:].expand(replica_mask.shape[1])
        log_std = torch.cat([self.log_std[:-1], bias_log_std])  # [K + N]
        mask = torch.cat([is_knob, replica_mask], dim=1).to(log_std.dtype)
        distribution = MaskedGaussian(mask)
        return distribution.proba_distribution(self.action_net(latent_pi) * mask, log_std)


def _mlp(input_size: int, output_size: int, *, is_zero: bool = False) -> nn.Sequential:
    """Return a head; if `is_zero`, one that returns 0 until it is trained."""
    last = nn.Linear(HEAD_SIZE, output_size)
    if is_zero:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(input_size, HEAD_SIZE), nn.Tanh(), last)
