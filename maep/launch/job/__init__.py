"""In the batch script, with the standard library only: what becomes of a job after its processes ended."""
