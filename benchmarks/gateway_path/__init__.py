"""Parts of `benchmarks/gateway.py`: programs, bodies, routers and measures."""
