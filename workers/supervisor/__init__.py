"""The supervisor: keeps the apps of this node as they should be, and says how they are."""
