"""What the login node knows of the cluster: its settings, its jobs, and Slurm's answers."""
