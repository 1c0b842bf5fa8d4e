"""Training, validation and test sites: disjoint in their seeds and in what they may draw from.

Does not know: sites, or traces.
"""

from enum import StrEnum

import numpy as np


class Split(StrEnum):
    """What a site is for; also the part of every recording that it draws from, in this order."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


# Root of the seeds of all sites; another number makes other sites.
_ROOT = 20_261_123
PART_FRACS: dict[Split, float] = {Split.TRAIN: 0.5, Split.VALIDATION: 0.15, Split.TEST: 0.35}
"""Consecutive shares of each recording: of its time, or of its sessions."""


def site_rng(split: Split, number: int, *path: int) -> np.random.Generator:
    """Return random numbers of a site; other splits, numbers and paths give unrelated ones.

    Raises:
        ValueError: the number is below 0.
    """
    if number < 0:
        msg = f"number of a site or an episode must be at least 0, got {number}"
        raise ValueError(msg)
    # The length keeps a path that ends in zeros apart from a shorter one: seeds are padded with 0.
    key = [_ROOT, list(Split).index(split), number, len(path), *path]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def site_seed(split: Split, number: int, *path: int) -> int:
    """Return a seed of a site, from 0 to below 2**31."""
    return int(site_rng(split, number, *path).integers(2**31))
