"""Lookahead: what a placement is worth, by short rollouts from what a gateway knows.

Does not know: the simulator or the live gateway, which both call it.
"""
