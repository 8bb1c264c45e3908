"""Prints more than anybody wants to read."""

import os
import time

count = int(os.environ.get("LINES", "100000"))
for number in range(count):
    print(f"{number:08d} {'x' * 90}")
while True:
    print(f"{count} lines were printed", flush=True)
    count += 1
    time.sleep(1)
