"""The `hostler` command."""

import integrations  # noqa: F401  before httpx, for what it says of that
