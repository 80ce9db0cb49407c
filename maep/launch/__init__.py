"""Launchers: one machine, SLURM, and the benchmark. The library never imports them."""
