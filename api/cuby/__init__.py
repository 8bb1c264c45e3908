"""Cuby's spelling of apps: products, installs, plugin routes, the marketplace (see docs/cuby.md)."""
