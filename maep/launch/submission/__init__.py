"""On the login node: from a configuration to batch scripts in Slurm's queue."""
