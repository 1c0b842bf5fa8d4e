"""Where a policy acts on real engines."""
