"""Serving: the processes of `trimtab serve`, and who rules the gateway's knobs.

Does not know: HTTP, or how a policy decides.
"""
