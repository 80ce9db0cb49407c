"""Certificates by randomised smoothing: what no attacker within a radius can change."""
