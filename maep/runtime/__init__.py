"""What every process stands on: errors, exit codes, console, device, randomness."""
