"""Sites: fleets with their traffic, drawn from one distribution, for training and for judging."""

from .capacity import Capacity, site_capacity
from .episode import (
    Episode,
    episode_regimes,
    site_episode,
    site_fleet,
    site_rate_rps,
    site_workload,
)
from .goodput import goodput
from .library import TraceLibrary
from .regime import RegimeKind, RegimeSpan
from .sampling import sample_site
from .site import Pool, Site
from .split import Split
from .traffic import Shape, Traffic

__all__ = [
    "Capacity",
    "Episode",
    "Pool",
    "RegimeKind",
    "RegimeSpan",
    "Shape",
    "Site",
    "Split",
    "TraceLibrary",
    "Traffic",
    "episode_regimes",
    "goodput",
    "sample_site",
    "site_capacity",
    "site_episode",
    "site_fleet",
    "site_rate_rps",
    "site_workload",
]
