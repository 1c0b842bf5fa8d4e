"""A recording that probes play on machines without a GPU; its README says how it was made."""
