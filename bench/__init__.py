"""How fast Hostler is, beside anchors that are measured in the same run: `python -m bench`."""
