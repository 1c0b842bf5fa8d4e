"""Data files that ship with the agents."""
