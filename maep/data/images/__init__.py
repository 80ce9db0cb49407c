"""Images in: layouts and archives read, clean shards written."""
