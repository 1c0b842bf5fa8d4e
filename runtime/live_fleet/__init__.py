"""A live fleet as the rest of the house sees a fleet: its state, its limits, its windows.

Does not know: HTTP, or policies.
"""
