"""Value: what a placement is worth, foretold by a small network instead of rollouts.

Does not know: the simulator or the live gateway, which both call it.
"""
