"""Metrics pages that arrive late: each read is shown only some scrapes after it was made.

A ring holds the pages on their way. A read starts from the newest page, because moving averages
go on from there, and the view then shows the oldest.

Does not know: what a page says (`gateway.py`).
"""

from ..compiled import compiled
from .memory import gateways_of, late_pages_of, views_of


@compiled
def _store(page, v):
    page.scraped_at_s = v.scraped_at_s
    page.running_requests = v.running_requests
    page.waiting_requests = v.waiting_requests
    page.kv_usage_frac = v.kv_usage_frac
    page.cached_frac = v.cached_frac
    page.iteration_log_ratio = v.iteration_log_ratio
    page.prefill_frac = v.prefill_frac
    page.prefill_stretch = v.prefill_stretch
    page.decode_base_s = v.decode_base_s


@compiled
def _show(v, page):
    v.scraped_at_s = page.scraped_at_s
    v.running_requests = page.running_requests
    v.waiting_requests = page.waiting_requests
    v.kv_usage_frac = page.kv_usage_frac
    v.cached_frac = page.cached_frac
    v.iteration_log_ratio = page.iteration_log_ratio
    v.prefill_frac = page.prefill_frac
    v.prefill_stretch = page.prefill_stretch
    v.decode_base_s = page.decode_base_s


@compiled
def show_newest(sim, g, r):
    """Put the newest page into the view, for a read to go on from."""
    pages = late_pages_of(sim, g, r)
    _show(views_of(sim, g)[r], pages[(gateways_of(sim)[g].num_scrapes - 1) % pages.size])


@compiled
def hand_on(sim, g, r):
    """Send the view's page on its way and show the one that arrives."""
    pages, number = late_pages_of(sim, g, r), gateways_of(sim)[g].num_scrapes
    _store(pages[number % pages.size], views_of(sim, g)[r])
    _show(views_of(sim, g)[r], pages[(number + 1) % pages.size])


@compiled
def fill(sim, g, r):
    """Let every page on its way be the view's: nothing older is worth showing."""
    pages = late_pages_of(sim, g, r)
    for i in range(pages.size):
        _store(pages[i], views_of(sim, g)[r])
