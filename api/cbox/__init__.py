"""cbox-init's spelling of apps: each process of each app is one of its processes."""
