"""HTTP in, HTTP out: declarations, dialects and the rooms behind each path."""
