"""Rates of this machine beside its own limits."""
