"""What attacks look with: at command lines, at Redis, and from the inside of a job or an app."""

import contextlib
from pathlib import Path
from typing import Any

#: A shell's words that say of each door whether it is open; what it needs to know comes by its environment.
PROBE = r"""
exec 2>/dev/null
try() { what=$1; shift; if "$@" >/dev/null; then echo "OPEN $what"; else echo "shut $what"; fi; }
for pid in $PIDS; do
  try "environ of $pid" grep -c . /proc/$pid/environ
  try "memory of $pid" dd if=/proc/$pid/mem bs=1 count=1
  try "descriptors of $pid" ls /proc/$pid/fd/0
  try "root of $pid" ls /proc/$pid/root/etc
  try "signal to $pid" kill -0 $pid
done
try "list of the worker's" ls "$(dirname "$PWD")"
try "other job" cat "$OTHER/secret"
try "other job's list" ls "$OTHER"
try "write into other job" touch "$OTHER/x"
try "write beside" touch ../x
try "secret of the service" cat "$SECRET"
try "shadow" cat /etc/shadow
try "write into the code" touch "$CODE/x"
try "raised" sh -c 'grep -q "NoNewPrivs:.*0" /proc/self/status'
"""


def value_of(client: Any, name: bytes) -> Any:
    """Return what a key of Redis holds, whatever its type."""
    kind = client.type(name)
    read = {
        b"string": client.get, b"hash": client.hgetall, b"set": client.smembers,
        b"list": lambda key: client.lrange(key, 0, -1), b"stream": client.xrange,
        b"zset": lambda key: client.zrange(key, 0, -1),
    }  # fmt: skip
    return read[kind](name) if kind in read else b""


def argv_of_all() -> str:
    """Return the command lines of all processes but the tests' own."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes()
            if b"pytest" not in words:
                found.append(words.decode(errors="replace"))
    return "\n".join(found)
