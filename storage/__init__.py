"""What Hostler remembers, and how that may change."""
