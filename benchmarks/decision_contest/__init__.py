"""Parts of the benchmark of decisions."""
