"""Training of the systems that learn: data, the one loop, checkpoints."""
