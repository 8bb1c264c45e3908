"""Says that it has started, and ends with exit code 3 a moment later."""

import os
import sys
import time

print(f"started as {os.getpid()}")
time.sleep(float(os.environ.get("CRASH_AFTER_S", "0.5")))
print("about to crash", file=sys.stderr)
sys.exit(3)
