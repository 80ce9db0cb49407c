"""Attacks on classifiers, resumable and reproducible, and what their threat models know."""
