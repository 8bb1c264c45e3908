"""Backups on a node: the engine, what is read and written, and the tasks."""
