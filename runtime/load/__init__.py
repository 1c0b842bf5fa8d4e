"""Load for a live gateway: a recorded trace played against it, and what its clients saw.

Does not know: who is behind the gateway.
"""
