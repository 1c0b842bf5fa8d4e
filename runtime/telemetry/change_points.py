"""Sudden changes of many signals: for each, evidence for a step up and for a step down.

A signal is taken for a level plus noise that is correlated from sample to sample, AR(1), whose
mean, spread and correlation are learned as it goes. A step of `step_sigmas` then moves the first
innovation by step / sqrt(1 - rho^2) and those after it by step (1 - rho) / sqrt(1 - rho^2); the
evidence is the greatest log-likelihood ratio, over all moments at which that step may have come,
of step against none. Without correlation it is Page's CUSUM with reference value step / 2.

With h nats of evidence as threshold, a two-sided test raises false alarms at most every
exp(h) / 2 samples on average (Lorden), and the threshold is set by Siegmund's closer
approximation for uncorrelated noise; both know the noise, which we have to learn, so the nominal
rate is set far below the one wanted, and a simulation says what is reached
(`benchmarks/change_points.py`).

What is done for real signals: a sample adds at most `most_nats_a_sample`, so that no one to three
outliers are a change; a signal's spread counts as at least a third of `least_change`, so that the
steps it is tested for are worth knowing of; after a change the mean starts anew.

In noise that follows itself closely nearly all that tells of a step is in one innovation, which
that cap does not let count. So a large innovation of a correlated signal is watched as a jump: it
is a change if the median of three samples from it on is more than half a step away, and no jump
back is among them. In a signal with many large innovations, as heavy tails have, none is watched.

What it does badly (`benchmarks/change_points.py` has the figures): at a correlation of about 0.5
to 0.8 most steps of 3 sigmas are found late or not at all; the threshold is a compromise with
false alarms. A drift of more than about a sigma in the length of the memory (10 s) counts as
noise: steps on it are found late or not at all. Noise that is correlated and heavy-tailed raises
more false alarms than any other.

Does not know: what the signals are, or who wants to hear of a change.
Source: Page, "Continuous inspection schemes", Biometrika 1954; Lorden, "Procedures for reacting to
a change in distribution", Annals of Mathematical Statistics 1971; Siegmund, "Sequential Analysis",
1985, equation 2.57 and corrected thresholds.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import change_kernel

DAY_S: Final = 86_400.0
# Excess over the boundary of a Gaussian random walk, in sigmas (Siegmund 1985)
_OVERSHOOT_SIGMAS: Final = 0.583


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeConfig:
    """What counts as a change."""

    step_sigmas: float = 3.0
    """Step that is looked for; greater ones are found sooner."""
    nominal_false_alarms_per_day: float = 0.05
    """Of a signal whose noise is known: a twentieth of what is wanted of one that is learned."""
    samples_per_s: float = 10.0
    most_nats_a_sample: float = 4.5
    """Evidence that one sample can add: that of one at the step itself, without correlation."""
    memory_samples: float = 100.0
    """Over which the mean is learned: drifts that take longer are followed."""
    noise_memory_samples: float = 1000.0
    """Over which spread and correlation are learned, so long that a step hardly bends them before
    it is found."""
    warm_up_samples: float = 50.0
    """Before the first change of a signal can be found."""
    settling_samples: float = 10.0
    """Before the next change of a signal can be found."""
    most_correlation: float = 0.95
    """Between neighbouring samples; more is taken for so much."""
    jump_sigmas: float = 5.0
    """Innovation that is watched as a jump, one in 1.7 million of Gaussian ones."""
    least_jump_correlation: float = 0.4
    """Below it evidence adds up soon, and single outliers return at once."""
    most_large_frac: float = 0.0015
    """Of a signal's innovations beyond 3.5 sigmas, 0.0005 if they are Gaussian: where there are
    more, jumps are part of the noise and not watched."""
    jump_warm_up_samples: float = 300.0
    """Before the first jump of a signal is watched: until then its tails are not known."""

    def __post_init__(self) -> None:
        for name in ("step_sigmas", "nominal_false_alarms_per_day", "samples_per_s"):
            if not (value := getattr(self, name)) > 0:
                msg = f"{name} must be above 0, got {value}"
                raise ValueError(msg)
        if not 0 <= self.most_correlation < 1:
            msg = f"most_correlation must be in [0, 1), got {self.most_correlation}"
            raise ValueError(msg)

    @property
    def threshold_nats(self) -> float:
        """Evidence at which a change is reported."""
        samples = DAY_S * self.samples_per_s / self.nominal_false_alarms_per_day
        return threshold_nats(self.step_sigmas, samples)


def samples_between_false_alarms(step_sigmas: float, nats: float) -> float:
    """Return the mean number of samples between false alarms of the two-sided test.

    Siegmund's approximation for independent Gaussian noise of known mean and spread.
    """
    boundary = nats + 2 * _OVERSHOOT_SIGMAS * step_sigmas
    one_sided = (math.exp(boundary) - boundary - 1) / (0.5 * step_sigmas**2)
    return 0.5 * one_sided


def threshold_nats(step_sigmas: float, samples: float) -> float:
    """Return the evidence that false alarms reach once in so many samples on average."""
    low, high = 0.0, 200.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if samples_between_false_alarms(step_sigmas, middle) < samples:
            low = middle
        else:
            high = middle
    return high


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Changes:
    """Signals that changed in one sample.

    Shapes: [changes].
    """

    signals: NDArray[np.int64]
    before: NDArray[np.float64]
    """Their means before the change."""
    num_left_out: int
    """Changes beyond those that are listed."""


def _settings_of(config: ChangeConfig) -> tuple[tuple[float, ...], ...]:
    """Return what the kernel is told of evidence, of learning and of jumps."""
    return (
        (
            config.step_sigmas,
            config.threshold_nats,
            config.most_nats_a_sample,
            config.most_correlation,
        ),
        (
            config.memory_samples,
            config.noise_memory_samples,
            config.warm_up_samples,
            config.settling_samples,
        ),
        (
            config.jump_sigmas,
            config.least_jump_correlation,
            config.most_large_frac,
            config.jump_warm_up_samples,
        ),
    )


class ChangePoints:
    """Watches many signals, one sample of each at a time.

    Shapes: N signals, O owners (a signal is sampled when its owner is).
    """

    def __init__(
        self,
        owner: NDArray[np.int32],
        least_change: ArrayLike,
        config: ChangeConfig | None = None,
        *,
        max_changes: int = 256,
    ) -> None:
        """Watch signals; `least_change` [N] or one number: no smaller step is of interest."""
        config = config if config is not None else ChangeConfig()
        floor = np.asarray(least_change, np.float64) / config.step_sigmas
        self._owner = owner
        self._floor = np.ascontiguousarray(np.broadcast_to(floor, owner.shape), np.float32)
        self._state = np.zeros((len(owner), change_kernel.NUM_COLUMNS), np.float32)
        self._settings = _settings_of(config)
        self._found = np.zeros(max_changes, np.int64)
        self._before = np.zeros(max_changes, np.float64)

    def update(self, values: NDArray[np.float32], is_new: NDArray[np.bool_]) -> Changes:
        """Take a sample of the signals of all owners that have a new one; NaN is none.

        Shapes: `values` [N], `is_new` [O].
        """
        num_found = change_kernel.detect(
            values, is_new, self._owner, self._state, self._settings, self._floor,
            self._found, self._before,
        )  # fmt: skip
        listed = min(num_found, len(self._found))
        return Changes(
            signals=self._found[:listed].copy(),
            before=self._before[:listed].copy(),
            num_left_out=num_found - listed,
        )

    @property
    def sigma(self) -> NDArray[np.float32]:
        """[N]: spread of each signal's noise as learned, as a standard deviation."""
        return self._state[:, change_kernel.SPREAD] * np.float32(math.sqrt(math.pi / 2))

    def forget(self, owner: int) -> None:
        """Begin anew with the signals of an owner."""
        self._state[self._owner == owner] = 0.0
