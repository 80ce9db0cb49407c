"""Launching: the processes of this machine, and the jobs of a SLURM cluster."""
