"""An observer's view of a run: status, progress and logs."""
