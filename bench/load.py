"""HTTP load by wrk: an epoll loop in C that takes a small part of a core, unlike any loader in Python."""

import re
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import orjson

from bench.figure import Missing

CONNECTIONS = 32
_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def _wrk() -> str:
    binary = shutil.which("wrk")
    if binary is None:
        raise Missing("wrk is not installed: apt-get install wrk")
    return binary


def require() -> None:
    """Raise Missing when there is no wrk."""
    _wrk()


def load(
    directory: Path,
    url: str,
    *,
    seconds: float,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    connections: int = CONNECTIONS,
) -> dict[str, float]:
    """Send the same request over and over; return requests/s as `value`, and `p50` and `p99` in ms.

    Headers go by a file, not by wrk's arguments. Raises RuntimeError when any answer is no success.
    """
    script = directory / f"wrk-{secrets.token_hex(4)}.lua"
    script.touch(mode=0o600)
    lines = [f"wrk.method = {_lua(method)}"]
    lines += [f"wrk.headers[{_lua(name)}] = {_lua(value)}" for name, value in (headers or {}).items()]
    if body is not None:
        lines += [f"wrk.body = {_lua(body.decode())}", 'wrk.headers["Content-Type"] = "application/json"']
    script.write_text("\n".join(lines) + "\n")
    told = subprocess.run(
        [_wrk(), "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "10s", "--latency", "-s", str(script),
         url],
        capture_output=True, text=True, timeout=seconds + 30, check=True,
    ).stdout  # fmt: skip
    script.unlink()
    if bad := re.search(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)", told):
        raise RuntimeError(f"{url} did not serve all of the load: {bad.group(0)}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", told)
    if rate is None:
        raise RuntimeError(f"wrk said nothing of its rate: {told}")
    return {"value": float(rate[1]), "p50": _quantile_ms(told, 50), "p99": _quantile_ms(told, 99)}


def _lua(text: str) -> str:
    return orjson.dumps(text).decode()  # JSON's escapes of what we send are Lua's


def _quantile_ms(told: str, percent: int) -> float:
    found = re.search(rf"{percent}%\s+([\d.]+)(us|ms|s|m)", told)
    return float(found[1]) * _UNITS_S[found[2]] * 1000 if found else 0.0
