"""Features of a rack's nodes, by kind of node, from raw signals and constants."""
