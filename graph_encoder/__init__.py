"""How the state of the fleet is seen: padded arrays to a graph, a graph to vectors."""
