"""The `hostler` command."""
