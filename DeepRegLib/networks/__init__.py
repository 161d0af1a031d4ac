"""Neural networks and their files; networks know tensors, not images or patients."""
