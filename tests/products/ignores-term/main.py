"""Ignores SIGTERM, saying so."""

import signal
import time

signal.signal(signal.SIGTERM, lambda *_: print("not leaving"))
print("here to stay")
while True:
    time.sleep(60)
