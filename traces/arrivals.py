"""Bursty arrival times: a slow ramp, a wandering rate, and clumps within the second.

The rate of each second is the mean rate times a sine (the ramp) times the exponential of an
AR(1) process (bursts of a minute or so); the count of the second is Poisson with a gamma-mixed
mean (bursts within the second). Times are uniform inside their second.

Does not know: what the requests hold.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalProcess:
    """Parameters of the arrival times."""

    rate_rps: float
    """mean rate in requests per second, above 0"""
    log_rate_std: float
    """standard deviation of the AR(1) log rate; 0 for a steady rate"""
    log_rate_memory_s: float
    """seconds after which the log rate has forgotten all but 1/e"""
    count_cv: float
    """coefficient of variation of the gamma factor on each second's mean; 0 for Poisson"""
    ramp_amplitude_frac: float
    """amplitude of the sine on the rate, as a share of it"""
    ramp_period_s: float
    """period of that sine in seconds"""


def arrivals_within(
    process: ArrivalProcess, span_s: float, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Sorted arrival times in [0, span_s)."""
    num_seconds = int(np.ceil(span_s))
    arrival_s = _arrivals(process, 0, num_seconds, 0.0, rng)[0]
    return arrival_s[arrival_s < span_s]


def first_arrivals(
    process: ArrivalProcess, num_requests: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """The first `num_requests` arrival times from 0 on, sorted."""
    chunks: list[npt.NDArray[np.float64]] = []
    num_drawn, second, log_rate = 0, 0, 0.0
    while num_drawn < num_requests:
        num_seconds = int(1.05 * (num_requests - num_drawn) / process.rate_rps) + 60
        chunk, log_rate = _arrivals(process, second, num_seconds, log_rate, rng)
        chunks.append(chunk)
        num_drawn += chunk.size
        second += num_seconds
    return np.concatenate(chunks)[:num_requests]


def _arrivals(
    process: ArrivalProcess,
    first_second: int,
    num_seconds: int,
    log_rate: float,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.float64], float]:
    """Times in the seconds given, and the log rate after them."""
    memory = np.exp(-1.0 / process.log_rate_memory_s)
    noise = process.log_rate_std * np.sqrt(1.0 - memory**2) * rng.standard_normal(num_seconds)
    log_rates = _autoregress(noise, log_rate, memory)
    second = first_second + np.arange(num_seconds)
    ramp = 1.0 + process.ramp_amplitude_frac * np.sin(2.0 * np.pi * second / process.ramp_period_s)
    # Half the variance is taken off so that the mean of the log-normal factor is 1.
    mean_count = process.rate_rps * ramp * np.exp(log_rates - 0.5 * process.log_rate_std**2)
    if process.count_cv > 0.0:
        shape = 1.0 / process.count_cv**2
        mean_count = mean_count * rng.gamma(shape, 1.0 / shape, num_seconds)
    counts = rng.poisson(mean_count)
    arrival_s = np.repeat(second, counts) + rng.random(int(counts.sum()))
    return np.sort(arrival_s), float(log_rates[-1])


@njit(cache=True, nogil=True)
def _autoregress(
    noise: npt.NDArray[np.float64], start: float, memory: float
) -> npt.NDArray[np.float64]:
    out = np.empty(noise.size)
    level = start
    for i in range(noise.size):
        level = memory * level + noise[i]
        out[i] = level
    return out
