"""Metrics pages that arrive late: each read is shown only some scrapes after it was made.

A ring holds the pages on their way. A read starts from the newest page, because moving averages
go on from there, and the view then shows the oldest.

Does not know: what a page says (`gateway.py`).
"""

from ..compiled import compiled
from .memory import gateways_of, late_pages_of, views_of


@compiled
def _copy(target, source):
    """Copy what a page says, from a view to a page or back."""
    target.scraped_at_s = source.scraped_at_s
    target.running_requests = source.running_requests
    target.waiting_requests = source.waiting_requests
    target.kv_usage_frac = source.kv_usage_frac
    target.cached_frac = source.cached_frac
    target.iteration_log_ratio = source.iteration_log_ratio
    target.prefill_frac = source.prefill_frac
    target.prefill_stretch = source.prefill_stretch
    target.decode_base_s = source.decode_base_s


@compiled
def show_newest(sim, g, r):
    """Put the newest page into the view, for a read to go on from."""
    pages = late_pages_of(sim, g, r)
    _copy(views_of(sim, g)[r], pages[(gateways_of(sim)[g].num_scrapes - 1) % pages.size])


@compiled
def hand_on(sim, g, r):
    """Send the view's page on its way and show the one that arrives."""
    pages, number = late_pages_of(sim, g, r), gateways_of(sim)[g].num_scrapes
    _copy(pages[number % pages.size], views_of(sim, g)[r])
    _copy(views_of(sim, g)[r], pages[(number + 1) % pages.size])


@compiled
def fill(sim, g, r):
    """Let every page on its way be the view's: nothing older is worth showing."""
    pages = late_pages_of(sim, g, r)
    for i in range(pages.size):
        _copy(pages[i], views_of(sim, g)[r])
