"""What a sweep shows: cells, tables, figures, and the page over all tables."""
