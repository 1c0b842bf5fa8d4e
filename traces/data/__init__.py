"""Trace slices that ship with Trimtab, with their licences."""
