"""In each process of a job: who it is, what it does, and how it ends."""
