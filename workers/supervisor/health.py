"""Health: whether an instance can be reached, and whether it says that it is well."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from storage.errors import NotFound
from storage.manifests.parts import Command, Health
from workers.supervisor import plain_http
from workers.supervisor.places import connectable

#: How often a socket is looked for that an instance is about to make.
SOCKET_PERIOD_S = 0.1


@dataclass(frozen=True, slots=True)
class Target:
    """Where an instance answers, and how a command is run beside it: True when that exits 0."""

    socket: Path | None
    port: int | None
    uid: int | None
    execute: Callable[[Command, float], Awaitable[bool]]


@dataclass(slots=True)
class Verdicts:
    """What the results so far amount to: None until either threshold is reached."""

    health: Health
    healthy: bool | None = None
    _successes: int = 0
    _failures: int = 0

    def add(self, succeeded: bool) -> bool:
        """Count one result; answers whether the verdict has changed."""
        before = self.healthy
        if succeeded:
            self._successes, self._failures = self._successes + 1, 0
            if self._successes >= self.health.successes:
                self.healthy = True
        else:
            self._successes, self._failures = 0, self._failures + 1
            if self._failures >= self.health.failures:
                self.healthy = False
        return self.healthy != before


async def until_connectable(target: Target) -> None:
    """Return once somebody listens on the instance's socket."""
    while not await _opens(target, None):
        await asyncio.sleep(SOCKET_PERIOD_S)


async def watch(health: Health, target: Target, changed: Callable[[bool], None], *, delay_s: float) -> None:
    """Ask again and again, until cancelled, and tell whenever the verdict changes."""
    verdicts = Verdicts(health)
    await asyncio.sleep(delay_s)
    while True:
        if verdicts.add(await ask(health, target)) and verdicts.healthy is not None:
            changed(verdicts.healthy)
        await asyncio.sleep(health.period_s)


async def ask(health: Health, target: Target) -> bool:
    """Ask once; answers whether the instance is well."""
    try:
        async with asyncio.timeout(health.timeout_s):
            if health.kind == "exec":
                return health.command is not None and await target.execute(health.command, health.timeout_s)
            if health.kind == "tcp":
                return await _opens(target, health.port)
            return await _answers(health, target)
    except TimeoutError:
        return False


async def _opens(target: Target, port: int | None) -> bool:
    port = port or (None if target.socket is not None else target.port)
    try:
        if port is not None:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        elif target.socket is not None:
            with connectable(target.socket, target.uid) as path:
                _, writer = await asyncio.open_unix_connection(path)
        else:
            return False
    except (OSError, NotFound):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


async def _answers(health: Health, target: Target) -> bool:
    port = health.port or (None if target.socket is not None else target.port)
    try:
        if port is not None:
            status = await _get(plain_http.transport(), f"http://127.0.0.1:{port}{health.path}")
        elif target.socket is not None:
            with connectable(target.socket, target.uid) as path:
                status = await _get(plain_http.transport(path), f"http://localhost{health.path}")
        else:
            return False
    except (httpx.HTTPError, httpx.InvalidURL, OSError, NotFound):
        return False
    return status == health.expected_status if health.expected_status else 200 <= status < 400


async def _get(transport: httpx.AsyncHTTPTransport, url: str) -> int:
    client = httpx.AsyncClient(transport=transport, trust_env=False, timeout=None)  # noqa: S113  it is the caller's
    # it hangs up once it has the status: a server that waited for another request would take that for an accident
    headers = {"user-agent": "hostler-health", "connection": "close"}
    async with client, client.stream("GET", url, headers=headers) as response:
        return response.status_code
