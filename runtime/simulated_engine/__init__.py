"""An engine without a model: it speaks vLLM's HTTP and takes as long as one would.

Does not know: gateways.
"""
