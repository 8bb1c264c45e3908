"""The page: what a browser is given, and what it asks for that no other client does (docs/page.md)."""
