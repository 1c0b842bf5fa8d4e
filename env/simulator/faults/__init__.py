"""Hidden trouble of a fleet: its settings, its random processes, and the tables drawn from them."""

from .config import FaultConfig
from .drawing import draw_crashes, draw_link_events, draw_slowdowns, draw_trouble, places_of
from .outages import Places
from .record import TroubleRecord

__all__ = [
    "FaultConfig",
    "Places",
    "TroubleRecord",
    "draw_crashes",
    "draw_link_events",
    "draw_slowdowns",
    "draw_trouble",
    "places_of",
]
