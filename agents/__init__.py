"""Policies: heuristics as knob settings, tuning, the learned policy, and their evaluation."""
