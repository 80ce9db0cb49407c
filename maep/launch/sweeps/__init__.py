"""Sweeps started: previewed, run here, or worked on as one of an array."""
