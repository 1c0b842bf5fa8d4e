"""What a replica draws: idle, prefill, decode by batch size, and under a power cap.

Decode power rises with the batch as a logistic of its logarithm; prefill draws a fixed power, and
an iteration that does both lies between by the share of its token budget that prefill takes. It
is constant while the batch is, so energy stays exact when many iterations are taken at once.

A cap lowers the clock until the power above idle, which goes with its cube, fits. Only what the
arithmetic units bound gets slower; reading weights and KV does not, so decode hardly slows.

Does not know: prices (`energy_prices.py`), or when a replica does what.
Source: ML.ENERGY v3 (arXiv 2601.22076) as used by vllm-sr-sim for the logistic, measured with a
70B model on H100; splitwise-sim `data/perf_model.csv` for the cap: H100 at half power prefills
1.30 times slower (the cube law says 1.31) and decodes as fast.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled
from .hardware import Gpu

# W of one H100 in decode at batch 1 and 128; slope 1/octave and middle in octaves between
_H100_DECODE_W = (300.0, 600.0)
_LOGISTIC_SLOPE = 1.0
_LOGISTIC_MIDDLE = 4.2
# Those two above idle (75 W) over the catalogue's decode power above idle (380 W): the shape that
# other GPUs are taken to share
_DECODE_SHAPE = tuple((power_w - 75.0) / (380.0 - 75.0) for power_w in _H100_DECODE_W)
# Power above idle goes with this power of the clock: dynamic power f V^2, V with f
CLOCK_EXPONENT = 3.0
# Lowest clock over the highest: 210 of 1,410 MHz, NVIDIA A100 supported clocks
MIN_CLOCK_FRAC = 0.15
# Sequences; larger batches draw what this one draws, as nobody measured them
MOST_BATCH = 128


def batch_power_frac(batch: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where decode power lies between that of batch 1 and of 128, in [0, 1]."""
    octaves = np.log2(np.append(np.clip(batch, 1.0, MOST_BATCH), [1.0, MOST_BATCH]))
    logistic = 1.0 / (1.0 + np.exp(-_LOGISTIC_SLOPE * (octaves - _LOGISTIC_MIDDLE)))
    *fracs, lowest, highest = logistic
    return np.asarray((np.array(fracs) - lowest) / (highest - lowest))


BATCH_POWER_FRAC = batch_power_frac(np.arange(MOST_BATCH + 1, dtype=np.float64))


class PowerRange(NamedTuple):
    """Power of some GPUs that work as one, their share of the host included, W."""

    idle_w: float
    decode_low_w: float
    decode_high_w: float
    prefill_w: float


def power_range(gpu: Gpu, num_gpus: int = 1) -> PowerRange:
    """Return what some GPUs of a kind draw; decode never draws more than prefill."""
    low_w, high_w = (gpu.idle_w + shape * (gpu.decode_w - gpu.idle_w) for shape in _DECODE_SHAPE)
    powers_w = (gpu.idle_w, low_w, min(high_w, gpu.prefill_w), gpu.prefill_w)
    return PowerRange(*(num_gpus * (power_w + gpu.host_w) for power_w in powers_w))


def cap_fault(gpu: Gpu, watts: float) -> str | None:
    """Return why a GPU cannot be capped at a power, or None."""
    if gpu.idle_w < watts <= gpu.tdp_w:
        return None
    return (
        f"power_cap_w: must be above the idle power ({gpu.idle_w:g} W) and at most the limit "
        f"({gpu.tdp_w:g} W) of {gpu.name!r}, got {watts:g}"
    )


@compiled
def clock_frac(idle_w, demanded_w, cap_w):
    """Return the clock, over the full one, at which a demanded power fits a cap."""
    if demanded_w <= cap_w:
        return 1.0
    room = max(cap_w - idle_w, 0.0) / (demanded_w - idle_w)
    return max(room ** (1.0 / CLOCK_EXPONENT), MIN_CLOCK_FRAC)


@compiled
def clocked_w(idle_w, demanded_w, clock):
    """Return the power drawn at a clock where the full one draws `demanded_w`."""
    return idle_w + (demanded_w - idle_w) * clock**CLOCK_EXPONENT
