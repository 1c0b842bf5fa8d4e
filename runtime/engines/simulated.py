"""Trimtab's simulated engine, for load tests without a model: vLLM's HTTP, another name.

Does not know: what it simulates (`runtime/simulated_engine`).
"""

from .vllm import VllmEngine


class SimulatedVllm(VllmEngine):
    """One simulated engine; what it can do is in its list of routes, as with vLLM."""
