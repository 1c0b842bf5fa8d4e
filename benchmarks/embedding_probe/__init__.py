"""Parts of the embedding benchmark: runs of a large fleet, vectors of states, what survives."""
