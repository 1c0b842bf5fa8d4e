"""Local replicas: real llama.cpp servers as supervised processes, on a model made on the spot.

Does not know: which requests they get.
"""
