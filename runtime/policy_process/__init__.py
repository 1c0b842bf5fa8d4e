"""A process that asks a gateway for its state each window and proposes knobs.

Does not know: requests, or whether its proposals are followed.
"""
