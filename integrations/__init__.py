"""One file per neighbouring system."""
