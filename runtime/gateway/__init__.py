"""The data plane: an OpenAI-compatible gateway in front of live replicas.

Does not know: how a replica is chosen, or what is in a request.
"""
