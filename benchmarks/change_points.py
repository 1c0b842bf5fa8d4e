"""How quickly steps are found in noisy signals, and how often nothing is taken for a step.

Signals are sampled at 10 Hz, as the aggregator does. A detector first sees quiet noise, then every
signal steps by three of its spreads at once: found is a change within one second. False alarms are
counted on noise without steps. Noise is Gaussian, with heavy tails (Student's t with 4 degrees of
freedom), autocorrelated (AR(1)), or rides on a slow wave (10 spreads in 20 minutes). A signal-day
is 864,000 samples of one signal. The cost is the thread's CPU time of `update`.

Run: python benchmarks/change_points.py [--json] [--signals 2000] [--samples 20000]
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from trimtab.env.state.feature import FloatArray
from trimtab.runtime.telemetry.change_points import ChangeDetector

RATE_HZ = 10
SAMPLES_PER_DAY = 86_400 * RATE_HZ
STEP_SIGMAS = 3.0
# The quiet before the step: twice the warm-up and more, so that the wave has moved.
QUIET_SAMPLES = 1_500
WAIT_SAMPLES = 60

Noise = Callable[[np.random.Generator, int], Iterator[FloatArray]]


def gaussian(rng: np.random.Generator, num_signals: int) -> Iterator[FloatArray]:
    """Independent Gaussian samples of spread 1."""
    while True:
        yield rng.standard_normal(num_signals)


def heavy_tailed(rng: np.random.Generator, num_signals: int) -> Iterator[FloatArray]:
    """Independent samples of Student's t with 4 degrees of freedom, spread 1."""
    while True:
        yield rng.standard_t(4, num_signals) / np.sqrt(2.0)


def autocorrelated(correlation: float) -> Noise:
    """AR(1) of spread 1."""

    def noise(rng: np.random.Generator, num_signals: int) -> Iterator[FloatArray]:
        values, fresh = np.zeros(num_signals), np.sqrt(1 - correlation**2)
        while True:
            values = correlation * values + fresh * rng.standard_normal(num_signals)
            yield values.copy()

    return noise


def drifting(rng: np.random.Generator, num_signals: int) -> Iterator[FloatArray]:
    """Gaussian samples of spread 1 on a wave of 10 spreads in 20 minutes."""
    phase = rng.uniform(0, 2 * np.pi, num_signals)
    for i, values in enumerate(gaussian(rng, num_signals)):
        yield values + 10 * np.sin(2 * np.pi * i / (1200 * RATE_HZ) + phase)


NOISES: dict[str, Noise] = {
    "gaussian": gaussian,
    "heavy_tailed": heavy_tailed,
    "ar_0.5": autocorrelated(0.5),
    "ar_0.8": autocorrelated(0.8),
    "ar_0.95": autocorrelated(0.95),
    "drifting": drifting,
}


def delays_s(noise: Noise, num_signals: int, seed: int) -> FloatArray:
    """Return the time from the step to its detection, infinity if it was missed; [signals]."""
    samples = noise(np.random.default_rng(seed), num_signals)
    detector = ChangeDetector(num_signals)
    delay = np.full(num_signals, np.inf)
    for i in range(QUIET_SAMPLES + WAIT_SAMPLES):
        since = i - QUIET_SAMPLES
        found = detector.update(next(samples) + (STEP_SIGMAS if since >= 0 else 0.0))
        if since >= 0:
            up = found.signal[found.size > 0]
            delay[up] = np.minimum(delay[up], (since + 1) / RATE_HZ)
    return delay


def false_alarms(
    noise: Noise, num_signals: int, num_samples: int, seed: int
) -> tuple[int, float, float]:
    """Return false alarms, the signal-days watched, and the nanoseconds a sample cost."""
    samples = noise(np.random.default_rng(seed), num_signals)
    detector, number, cpu_s = ChangeDetector(num_signals), 0, 0.0
    for _ in range(num_samples):
        values = next(samples)
        begun_s = time.thread_time()
        number += detector.update(values).signal.size
        cpu_s += time.thread_time() - begun_s
    watched = num_samples - detector.config.warm_up_samples
    num_values = num_samples * num_signals
    return number, watched * num_signals / SAMPLES_PER_DAY, 1e9 * cpu_s / num_values


def measure(num_signals: int, num_samples: int) -> dict[str, dict[str, float]]:
    """Return the figures of every noise."""
    figures = {}
    console = Console(stderr=True)
    for name, noise in track(NOISES.items(), description="noises", console=console):
        delay_s = delays_s(noise, num_signals, seed=1)
        number, days, cost_ns = false_alarms(noise, num_signals, num_samples, seed=2)
        figures[name] = {
            "found_within_1_s": float((delay_s <= 1.0).mean()),
            "delay_p50_s": float(np.median(delay_s)),
            "delay_p95_s": float(np.quantile(delay_s, 0.95, method="inverted_cdf")),
            "false_alarms": number,
            "signal_days": days,
            "false_alarms_per_signal_hour": number / (24 * days),
            "false_alarms_per_signal_day": number / days,
            "ns_per_sample": cost_ns,
        }
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--signals", type=int, default=2_000)
    parser.add_argument("--samples", type=int, default=20_000)
    arguments = parser.parse_args()
    figures = measure(arguments.signals, arguments.samples)
    table = Table("noise", "found in 1 s", "delay p50 / p95", "false / signal-day", "ns / sample")
    for name, row in figures.items():
        table.add_row(
            name,
            f"{100 * row['found_within_1_s']:.1f} %",
            f"{row['delay_p50_s']:.1f} / {row['delay_p95_s']:.1f} s",
            f"{row['false_alarms_per_signal_day']:.2f} ({row['false_alarms']:.0f} seen)",
            f"{row['ns_per_sample']:.0f}",
        )
    Console().print(table)
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
