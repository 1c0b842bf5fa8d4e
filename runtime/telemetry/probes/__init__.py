"""What a server can be asked about itself: its GPUs, its engines, its host."""
