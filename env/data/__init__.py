"""Cluster descriptions that ship with Trimtab."""
