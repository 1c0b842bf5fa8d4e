"""The four-dimensional state of a fleet: its features, its graph, and one moment of it."""
