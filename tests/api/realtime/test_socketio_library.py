"""What the web processes read of Socket.IO's library, and what they leave."""

import subprocess
import sys
from pathlib import Path

READ = """
import sys
from api.realtime.socketio import library
library.read()
import api.realtime.socketio.mount
print(sorted({"aiohttp", "redis", "requests", "valkey"} & sys.modules.keys()))
import redis.asyncio
print(redis.asyncio.Redis.__name__)
"""


def test_a_process_that_serves_reads_no_client_and_no_broker_and_may_still_read_them_later() -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        (sys.executable, "-c", READ), cwd=root, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == ["[]", "Redis"]
