"""A simulated fleet of probes: load, signals, clocks and faults."""
