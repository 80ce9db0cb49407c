"""Sharded checkpoints: written in the background, read by any number of processes."""
