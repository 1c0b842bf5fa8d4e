"""From probes on every server to the state of the whole fleet, many times a second."""
