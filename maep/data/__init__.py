"""Shard sets, the order of samples, and the pairs that a training step consumes."""
