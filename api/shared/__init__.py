"""Paths that several dialects share: health, identity, documentation."""
