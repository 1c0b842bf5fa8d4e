"""Training of the value network: what rollouts say of candidates at many sites, fitted.

Labels are collected while requests are placed by the worth that is known so far, so that the
network learns of the situations that it brings about; each further round collects under the network
of the round before. The network corrects the closed form and is trained on both of its parts: the
chance of the request itself, and what the others gain or lose.

Does not know: whether what was learned places better; the gate says that (`gate.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..env.knobs import Knobs
from ..env.lookahead.settings import Judge
from ..env.simulated_fleet import SimulatedFleet
from ..env.sites import Episode
from ..env.value.features import NUM_FEATURES, OWN_MET, RUN_LOSS, WAIT_LOSS
from ..env.value.labels import LabelSettings
from ..env.value.network import HIDDEN_SIZES, NUM_OUTPUTS, ValueNetwork, closed_form

# Labels beyond this many request weights say no more than that much is lost.
_MOST_GAIN = 8.0
# Added to a feature's spread, so that one that never moves is left alone.
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueTrainingConfig:
    """Budget of a training.

    Raises:
        ValueError: a number is too small.
    """

    num_rounds: int = 2
    """Rounds of collecting and training."""
    decisions_per_episode: int = 800
    """Decisions of an episode that are labelled, about."""
    num_epochs: int = 20
    batch_size: int = 2048
    learning_rate: float = 3e-3
    learns_others: bool = True
    """Whether what the others gain is corrected as well as the own chance."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_rounds", "decisions_per_episode", "num_epochs", "batch_size"):
            if getattr(self, name) < 1:
                msg = f"{name} must be at least 1, got {getattr(self, name)}"
                raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueTrainingResult:
    """Outcome of a training."""

    network: ValueNetwork
    num_labels: int
    closed_form_r2: float
    """Share of the variance of worth that the closed form explains on the validation labels."""
    trained_r2: float
    """The same of the network."""
    calibration: tuple[tuple[float, float, int], ...]
    """By tenths of the foretold own chance: mean foretold, mean found, number of labels."""


Progress = Callable[[str], None]
"""Called with what was just done."""


def collect_labels(
    episodes: Sequence[Episode],
    knobs: Knobs,
    network: ValueNetwork,
    config: ValueTrainingConfig,
) -> np.ndarray:
    """Return the labels of all episodes, placed by a network; LABEL_DTYPE [N]."""
    found = []
    for episode in episodes:
        every = max(1, episode.workload.requests.size // config.decisions_per_episode)
        labels = LabelSettings(behaviour=Judge.NETWORK, every=every)
        own = replace(episode.config, value=network, labels=labels)
        fleet = SimulatedFleet(episode.cluster, episode.workload, own)
        fleet.reset(seed=episode.number, knobs=knobs)
        fleet.drain()
        found.append(fleet.labels.copy())
    return np.concatenate(found)


class _Corrections(nn.Module):
    """Features to the corrections of both parts, 0 before training; [N, F] -> [N, 2]."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.mean = features.mean(0)
        self.spread = features.std(0) + _LEAST_SPREAD
        first, second = HIDDEN_SIZES
        self.first = nn.Linear(NUM_FEATURES, first)
        self.second = nn.Linear(first, second)
        self.last = nn.Linear(second, NUM_OUTPUTS)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, features: Tensor) -> Tensor:
        hidden = torch.relu(self.first((features - self.mean) / self.spread))
        found: Tensor = self.last(torch.relu(self.second(hidden)))
        return found

    def network(self, *, learns_others: bool) -> ValueNetwork:
        """Return the weights with the features' scaling folded into the first layer."""
        with torch.no_grad():
            weight = self.first.weight / self.spread
            last, bias = self.last.weight.clone(), self.last.bias.clone()
            if not learns_others:
                last[1], bias[1] = 0.0, 0.0
            tensors = {
                "first.weight": weight,
                "first.bias": self.first.bias - weight @ self.mean,
                "second.weight": self.second.weight,
                "second.bias": self.second.bias,
                "last.weight": last,
                "last.bias": bias,
            }
        return ValueNetwork.of_tensors({name: t.detach().numpy() for name, t in tensors.items()})


def _tensors(labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return features [N, F], and what is to be corrected of both parts [N, 2]."""
    features = torch.from_numpy(np.ascontiguousarray(labels["features"]))
    known = torch.stack(
        [features[:, OWN_MET], features[:, RUN_LOSS] + features[:, WAIT_LOSS]], dim=1
    )
    found = torch.from_numpy(np.stack([labels["own"], labels["others"]], axis=1))
    return features, found.clamp(-_MOST_GAIN, _MOST_GAIN) - known


def fit_network(labels: np.ndarray, config: ValueTrainingConfig) -> ValueNetwork:
    """Return a network fitted to labels; LABEL_DTYPE [N]."""
    torch.manual_seed(config.seed)
    features, targets = _tensors(labels)
    model = _Corrections(features)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    size = min(config.batch_size, features.shape[0])
    num_batches = features.shape[0] // size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.num_epochs * num_batches
    )
    for _ in range(config.num_epochs):
        order = torch.randperm(features.shape[0])
        for i in range(num_batches):
            rows = order[i * size : (i + 1) * size]
            loss = nn.functional.huber_loss(model(features[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model.network(learns_others=config.learns_others)


def explained(network: ValueNetwork, labels: np.ndarray) -> float:
    """Return the share of the variance of worth that a network explains; 1 is all."""
    found = (labels["own"] + labels["others"]).clip(-_MOST_GAIN, _MOST_GAIN)
    error = network.worths(labels["features"]).sum(axis=1) - found
    return float(1.0 - (error**2).mean() / found.var())


def calibration(network: ValueNetwork, labels: np.ndarray) -> tuple[tuple[float, float, int], ...]:
    """Return foretold and found own chance by tenths of the foretold, where there are labels."""
    foretold, found = network.worths(labels["features"])[:, 0], labels["own"]
    tenth = np.minimum((10.0 * foretold).astype(int), 9)
    rows = []
    for i in range(10):
        chosen = tenth == i
        if chosen.any():
            means = float(foretold[chosen].mean()), float(found[chosen].mean())
            rows.append((*means, int(chosen.sum())))
    return tuple(rows)


def train_value(
    episodes: Sequence[Episode],
    validation: Sequence[Episode],
    knobs: Knobs,
    config: ValueTrainingConfig | None = None,
    *,
    on_step: Progress = lambda text: None,
) -> ValueTrainingResult:
    """Train a network on the episodes of training sites, and judge its fit on others.

    Raises:
        ValueError: there is no episode to train or to validate on.
    """
    config = config or ValueTrainingConfig()
    if not episodes or not validation:
        msg = f"need episodes to train and validate on, got {len(episodes)} and {len(validation)}"
        raise ValueError(msg)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    network, rounds = closed_form(), []
    try:
        for i in range(config.num_rounds):
            rounds.append(collect_labels(episodes, knobs, network, config))
            on_step(f"round {i + 1}: {rounds[-1].size} labels")
            network = fit_network(np.concatenate(rounds), config)
            on_step(f"round {i + 1}: fitted")
        unseen = collect_labels(validation, knobs, network, config)
    finally:
        torch.set_num_threads(threads)
    return ValueTrainingResult(
        network=network,
        num_labels=sum(labels.size for labels in rounds),
        closed_form_r2=explained(closed_form(), unseen),
        trained_r2=explained(network, unseen),
        calibration=calibration(network, unseen),
    )
