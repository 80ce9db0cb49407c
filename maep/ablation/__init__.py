"""Ablations: sweeps over configurations, and the tables and figures made of them."""
