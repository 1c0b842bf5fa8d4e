"""Where a live request runs: the dispatch kernel over what a live gateway knows.

Does not know: HTTP, or how requests are understood.
"""
