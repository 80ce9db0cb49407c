"""The evaluation of one run: its plan, its attacks, its records."""
