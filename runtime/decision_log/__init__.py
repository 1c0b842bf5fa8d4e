"""Why each request went where it went: decisions, written down and told in words.

Does not know: how a decision is made.
"""
