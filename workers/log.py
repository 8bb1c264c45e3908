"""The logger of everything under workers/."""

import logging

log = logging.getLogger("hostler.worker")
