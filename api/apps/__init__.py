"""Apps and releases in Hostler's own spelling: what the three foreign dialects share, whole."""
