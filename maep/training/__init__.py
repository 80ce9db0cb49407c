"""Training: the loop, its stages, its checkpoints, its processes."""
