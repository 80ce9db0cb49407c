"""Records to rows, report.json, figures, and the page."""
