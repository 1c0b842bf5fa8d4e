"""Parts of `benchmarks/shield.py`."""
