"""Settings: what can be set, how it is read, what fits together, and what decides a result."""
