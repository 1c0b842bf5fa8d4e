"""Self-supervised training of the encoder: no labels, only states and what became of them.

Three tasks, from a state of which parts are hidden:
- restore: each node's vector gives the values of the node that were hidden;
- foretell: each node's vector gives the node's values one window later, the pooled vector those of
  the fleet;
- summarise: the pooled vector gives mean, spread and maximum of every feature over the nodes of
  its kind, what was hidden included: what is to survive the compression.

Errors are Huber losses of scaled values, each feature's over its spread in the training states.

Does not know: where the states come from (`state_sequences.py`), or what is decided with the
vectors.
Source: masked reconstruction as in Hou et al. 2022, "GraphMAE".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import huber_loss

from ..env.state.feature import Node
from .attention_encoder import AttentionEncoder, EncodedGraphs
from .dense_encoder import DenseEncoder
from .graph_batch import GraphBatch, batch_graphs
from .masking import NUM_FEATURES, MaskConfig, hide, values_of

TASKS = ("restore", "foretell", "summarise")
FLEET = str(Node.FLEET)
NUM_SUMMARIES = 3
"""Mean, spread and maximum of a feature."""
# Scaled values beyond this are outliers that no loss should chase.
_CLIP = 5.0
# Spread of a feature below which its errors are not blown up further.
_LEAST_SPREAD = 0.05
# Largest norm of a step's gradient.
_MAX_GRADIENT = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingConfig:
    """How the encoder is trained."""

    num_steps: int = 1_500
    batch_size: int = 8
    """Graphs of a step."""
    learning_rate: float = 2e-3
    """At its height; it falls to a twentieth along a cosine."""
    hidden_size: int = 32
    num_layers: int = 2
    mask: MaskConfig = field(default_factory=MaskConfig)
    validate_every: int = 250
    """Steps between looks at the validation loss."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "hidden_size", "num_layers", "validate_every"):
            if getattr(self, name) < 1:
                msg = f"{name} must be at least 1, got {getattr(self, name)}"
                raise ValueError(msg)
        if not self.learning_rate > 0:
            msg = f"learning_rate must be above 0, got {self.learning_rate}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Mean loss of each task at a step; 1 is about what foretelling the mean would cost."""

    step: int
    restore: float
    foretell: float
    summarise: float

    @property
    def total(self) -> float:
        """What is minimised."""
        return self.restore + self.foretell + self.summarise


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pretrained:
    """The trained encoder, and how it got there."""

    encoder: AttentionEncoder
    training: tuple[Losses, ...]
    validation: tuple[Losses, ...]
    """The first entry is of the untrained encoder; the encoder is that of the best."""


class Decoders(nn.Module):
    """What the tasks read off the vectors: linear maps, so that the vectors must do the work."""

    def __init__(self, encoder: AttentionEncoder) -> None:
        super().__init__()
        hidden, pooled = encoder.hidden_size, encoder.pooled_size
        self.kinds = tuple(encoder.readout.pools)
        sizes = {kind: (hidden, NUM_FEATURES[kind]) for kind in self.kinds}
        sizes[FLEET] = (pooled, NUM_FEATURES[FLEET])
        self.restore = nn.ModuleDict({kind: nn.Linear(*size) for kind, size in sizes.items()})
        self.foretell = nn.ModuleDict({kind: nn.Linear(*size) for kind, size in sizes.items()})
        self.summarise = nn.ModuleDict(
            {kind: nn.Linear(pooled, NUM_SUMMARIES * NUM_FEATURES[kind]) for kind in self.kinds}
        )


def summaries(graphs: GraphBatch, kind: str) -> tuple[Tensor, Tensor]:
    """Return mean, spread and maximum of each feature over a graph's known nodes, and where known.

    Shapes (B graphs, F features): both [B, 3 F].
    """
    values, is_known = values_of(graphs, kind)
    shape = (graphs.num_graphs, -1, NUM_FEATURES[kind])
    values, is_known = values.reshape(shape), is_known.reshape(shape)
    count = is_known.sum(dim=1).clamp(min=1)
    mean = (values * is_known).sum(dim=1) / count
    squares = ((values - mean.unsqueeze(1)).square() * is_known).sum(dim=1) / count
    maximum = values.masked_fill(~is_known, -_CLIP).amax(dim=1)
    has_any = is_known.any(dim=1)
    return torch.cat([mean, squares.sqrt(), maximum], dim=1), has_any.repeat(1, NUM_SUMMARIES)


class Pretrainer:
    """Trains an encoder on pairs of states one window apart.

    Args:
        sequences: graphs of fleets in order of time, each a batch of one; [fleets][windows].
        config: how to train.

    Raises:
        ValueError: a sequence is shorter than two windows, or there is none.
    """

    def __init__(
        self, sequences: Sequence[Sequence[GraphBatch]], config: PretrainingConfig
    ) -> None:
        if not sequences or min(map(len, sequences)) < 2:
            lengths = [len(sequence) for sequence in sequences]
            msg = f"sequences must be one or more, each of at least 2 windows, got {lengths}"
            raise ValueError(msg)
        torch.manual_seed(config.seed)
        self.config = config
        self.sequences = sequences
        self.encoder = AttentionEncoder(
            hidden_size=config.hidden_size, num_layers=config.num_layers
        )
        self.decoders = Decoders(self.encoder)
        self._dense = DenseEncoder(self.encoder)
        self._generator = torch.Generator().manual_seed(config.seed)
        self._spread = _spreads(sequences, self.decoders.kinds)
        weights = [*self.encoder.parameters(), *self.decoders.parameters()]
        self._optimiser = torch.optim.Adam(weights, lr=config.learning_rate)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self._optimiser, config.num_steps, eta_min=config.learning_rate / 20
        )

    def step(self) -> dict[str, float]:
        """Take one step and return the loss of each task."""
        now, later = self._draw()
        losses = self._losses(now, later, self._generator)
        self._optimiser.zero_grad()
        total = torch.stack(list(losses.values())).sum()
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(
            [*self.encoder.parameters(), *self.decoders.parameters()], _MAX_GRADIENT
        )
        self._optimiser.step()
        self._schedule.step()
        return {task: float(loss.detach()) for task, loss in losses.items()}

    def _draw(self) -> tuple[GraphBatch, GraphBatch]:
        """Draw pairs of one fleet: its edges are the same, so batches differ in values alone."""
        fleet = int(torch.randint(len(self.sequences), (1,), generator=self._generator))
        sequence = self.sequences[fleet]
        size = (self.config.batch_size,)
        first = torch.randint(len(sequence) - 1, size, generator=self._generator).tolist()
        return _pairs(sequence, first)

    @torch.no_grad()
    def validate(self, sequences: Sequence[Sequence[GraphBatch]], step: int) -> Losses:
        """Return the losses on other fleets, with the same things hidden each time."""
        generator = torch.Generator().manual_seed(self.config.seed + 1)
        sums, number = dict.fromkeys(TASKS, 0.0), 0
        for sequence in sequences:
            for begin in range(0, len(sequence) - 1, self.config.batch_size):
                end = min(begin + self.config.batch_size, len(sequence) - 1)
                now, later = _pairs(sequence, list(range(begin, end)))
                for task, loss in self._losses(now, later, generator).items():
                    sums[task] += float(loss) * (end - begin)
                number += end - begin
        return Losses(step=step, **{task: total / number for task, total in sums.items()})

    def _losses(
        self, now: GraphBatch, later: GraphBatch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        masked = hide(now, self.config.mask, generator)
        encoded = self._dense(masked.graphs)
        restore, foretell, summarise = [], [], []
        for kind in (*self.decoders.kinds, FLEET):
            vectors = _vectors(encoded, kind)
            if not len(vectors):
                continue
            values, _ = values_of(now, kind)
            restored = self.decoders.restore[kind](vectors)
            restore.append(self._loss(kind, restored, values, masked.is_hidden[kind]))
            values, is_known = values_of(later, kind)
            foretold = self.decoders.foretell[kind](vectors)
            foretell.append(self._loss(kind, foretold, values, is_known))
        for kind in self.decoders.kinds:
            if now.x[kind].shape[0]:
                values, is_known = summaries(now, kind)
                found = self.decoders.summarise[kind](encoded.pooled)
                summarise.append(self._loss(kind, found, values, is_known))
        parts = dict(zip(TASKS, (restore, foretell, summarise), strict=True))
        return {task: torch.stack(losses).mean() for task, losses in parts.items()}

    def _loss(self, kind: str, found: Tensor, values: Tensor, counts: Tensor) -> Tensor:
        """Return the mean loss of the values that count; both [rows, F or 3 F]."""
        spread = self._spread[kind].repeat(values.shape[1] // NUM_FEATURES[kind])
        losses = huber_loss(found / spread, values.clamp(-_CLIP, _CLIP) / spread, reduction="none")
        return (losses * counts).sum() / counts.sum().clamp(min=1)


def pretrain(
    training: Sequence[Sequence[GraphBatch]],
    validation: Sequence[Sequence[GraphBatch]],
    config: PretrainingConfig,
    on_step: Callable[[Losses], None] = lambda _: None,
) -> Pretrained:
    """Train an encoder and return the one with the least validation loss.

    Args:
        training: graphs of fleets, [fleets][windows].
        validation: graphs of other fleets.
        config: how to train.
        on_step: told the training losses after each step.
    """
    trainer = Pretrainer(training, config)
    looks = [trainer.validate(validation, 0)]
    best = _copy_of(trainer.encoder)
    curve = []
    for step in range(1, config.num_steps + 1):
        losses = Losses(step=step, **trainer.step())
        curve.append(losses)
        on_step(losses)
        if step % config.validate_every == 0 or step == config.num_steps:
            looks.append(trainer.validate(validation, step))
            if looks[-1].total == min(look.total for look in looks):
                best = _copy_of(trainer.encoder)
    trainer.encoder.load_state_dict(best)
    return Pretrained(encoder=trainer.encoder, training=tuple(curve), validation=tuple(looks))


def _copy_of(encoder: AttentionEncoder) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in encoder.state_dict().items()}


def _vectors(encoded: EncodedGraphs, kind: str) -> Tensor:
    return encoded.pooled if kind == FLEET else encoded.nodes[kind].flatten(0, 1)


def _pairs(sequence: Sequence[GraphBatch], first: list[int]) -> tuple[GraphBatch, GraphBatch]:
    """Return states and those one window later, as two batches."""
    now = batch_graphs([sequence[i] for i in first])
    return now, batch_graphs([sequence[i + 1] for i in first])


def _spreads(sequences: Sequence[Sequence[GraphBatch]], kinds: Sequence[str]) -> dict[str, Tensor]:
    """Return how far each feature's values lie apart in all states, [F] for each kind."""
    spreads = {}
    for kind in (*kinds, FLEET):
        rows, known = [], []
        for sequence in sequences:
            for graphs in sequence[:: max(1, len(sequence) // 8)]:
                values, is_known = values_of(graphs, kind)
                rows.append(values.clamp(-_CLIP, _CLIP))
                known.append(is_known)
        values, is_known = torch.cat(rows), torch.cat(known)
        count = is_known.sum(dim=0).clamp(min=1)
        mean = (values * is_known).sum(dim=0) / count
        squares = ((values - mean).square() * is_known).sum(dim=0) / count
        spreads[kind] = squares.sqrt().clamp(min=_LEAST_SPREAD)
    return spreads
