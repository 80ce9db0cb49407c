"""A training on paper: what it costs on N nodes."""
