"""Readers of the simulator's arrays: every feature that it models, as a scheduler would see it."""
