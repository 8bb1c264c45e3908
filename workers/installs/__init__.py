"""Installs: how a release comes to a node, is replaced by another one, and leaves."""
