"""Squareberg's spelling of apps: its hub's registry, and the way to each app's backend and frontend."""
