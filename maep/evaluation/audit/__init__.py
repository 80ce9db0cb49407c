"""Questions put to a defense and to its numbers before they are believed."""
