"""ContextBay's spelling: nodes, modules, backups, and the WebSocket on which all that happens is told."""
