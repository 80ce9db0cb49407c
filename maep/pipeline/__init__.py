"""The stages of a run, what each depends on, and running them."""
