"""Starts a grandchild that outlives its parent unless the whole tree is ended."""

import os
import subprocess
import time
from pathlib import Path

# the shell in the middle ends at once, so that nobody's parent leads to the one that stays
note = Path(os.environ["HOSTLER_DATA_DIR"]) / "grandchild"
subprocess.run(["/bin/sh", "-c", 'setsid sleep 1000 & echo $! > "$0"', note], check=True)
print("forked")
while True:
    time.sleep(60)
