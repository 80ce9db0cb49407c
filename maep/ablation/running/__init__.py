"""The points of a sweep being run: who runs one, what is shared, and what is known of each."""
