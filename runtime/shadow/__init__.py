"""What another scheduler would have done, from what was logged of the one that served.

Does not know: how a gateway serves.
"""
