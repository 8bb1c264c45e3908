"""The control plane as an agent sees it: its API over HTTP, the agent's token, and what its answers mean.

Whatever is not Hostler's own answer (a proxy's page, a cut connection, a server that is being replaced) means "try
again". Hostler's own "no" to the token means that this agent was registered anew or removed: it registers again.
"""

import asyncio
import contextlib
import os
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

import httpx
import orjson

from settings import __version__, is_loopback
from storage.errors import (
    Conflict,
    Denied,
    HostlerError,
    Invalid,
    NotFound,
    Stale,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from workers.log import log

#: An idle connection is kept for the next call for so long; the API keeps it a little longer.
KEEP_ALIVE_S = 55.0
#: While less than this share of the API's rate is left, what can wait should, so that heartbeats get through.
RESERVE = 0.25

#: For calls that answer at once.
PROMPT = httpx.Timeout(10.0)
#: Between two pieces of a file, and for the answer once it is stored.
BULKY = httpx.Timeout(10.0, read=120.0, write=60.0)

#: What the API's refusals mean here; all others from 400 to 499 are Invalid.
_REFUSALS: dict[int, type[HostlerError]] = {
    401: Unauthenticated, 403: Denied, 404: NotFound, 408: Unavailable, 409: Conflict, 413: TooLarge, 425: Unavailable,
    429: Unavailable,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """How an agent introduces itself: `facts` as POST /api/workers/register takes them, and its right to do so."""

    name: str
    facts: Mapping[str, Any]
    secret: str | None = None
    api_key: str | None = None


@dataclass(frozen=True, slots=True)
class TokenFile:
    """Where the token of an agent outlives it, readable by its own user alone."""

    path: Path

    def read(self, url: str, name: str) -> str | None:
        """Return the token that `name` was given by the API at `url`; None when there is none."""
        try:
            kept = orjson.loads(self.path.read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return None
        mine = isinstance(kept, dict) and (kept.get("url"), kept.get("name")) == (url, name)
        return str(kept["token"]) if mine and kept.get("token") else None

    def write(self, url: str, name: str, token: str) -> None:
        """Keep a token, whole or not at all. Raises OSError."""
        handle, beside = tempfile.mkstemp(prefix="tmp-token-", dir=self.path.parent)  # with mode 0600
        with os.fdopen(handle, "wb") as file:
            file.write(orjson.dumps({"url": url, "name": name, "token": token}))
        Path(beside).replace(self.path)

    def remove(self) -> None:
        """Forget the token. Safe to repeat."""
        self.path.unlink(missing_ok=True)


class ControlPlane:
    """The API at `url`, called as one agent; `ca_file` adds an authority to those that are trusted.

    `registration` counts how often this process has registered; `heartbeat_s` is how often the API wants to hear.
    """

    def __init__(
        self, url: str, enrolment: Enrolment, *, token_file: TokenFile, ca_file: Path | None = None
    ) -> None:
        self.url, self.name = url.rstrip("/"), enrolment.name
        self.registration = 0
        self.heartbeat_s: float | None = None
        self.low_on_rate = False
        self._enrolment, self._token_file = enrolment, token_file
        self._token = token_file.read(self.url, self.name)
        self._registering = asyncio.Lock()
        self._http = _client(self.url, ca_file)

    # Being known

    async def register(self) -> None:
        """Register, with the token of an earlier registration as proof if there is one, and send a heartbeat.

        Raises Conflict while another agent of this name is online, Denied or Unauthenticated without a right to
        register, Invalid for a name or tags that the API does not take, and Unavailable.
        """
        body = {"workerId": self.name, **self._enrolment.facts}
        secret = {"x-enroll-secret": self._enrolment.secret} if self._enrolment.secret else {}
        ways = [{**secret, "x-worker-token": self._token}] if self._token else []
        if self._enrolment.api_key:  # apart: beside a key, the API does not look at a token
            ways.append({**secret, "x-api-key": self._enrolment.api_key})
        ways = ways or [secret]
        for number, credentials in enumerate(ways, 1):
            try:
                answer = await self.ask("POST", "/api/workers/register", body, credentials=credentials)
                break
            except (Unauthenticated, Denied):
                if number == len(ways):
                    raise
        token = answer.get("token")
        if not isinstance(token, str) or not token:
            raise Unavailable("The answer to a registration holds no token.")
        self._token, self.registration = token, self.registration + 1
        try:
            self._token_file.write(self.url, self.name, token)
        except OSError as error:  # a restart will wait until this registration is silent
            log.warning("the token cannot be kept", extra={"file": self._token_file.path, "why": str(error)})
        log.info("registered", extra={"worker": self.name, "url": self.url})
        # before the first poll: the leases of an agent that never sent a heartbeat last as long as a job may
        await self.beat({"status": "idle"})

    async def _register_again(self, refused: str | None) -> None:
        """Replace the token that was refused, once for all calls that it was refused to. Raises Unavailable."""
        async with self._registering:
            if self._token != refused:
                return
            log.warning("the registration is gone; registering anew", extra={"worker": self.name})
            try:
                await self.register()
            except Unavailable:
                raise
            except HostlerError as error:
                raise Unavailable(f"Cannot register again: {error}") from error

    async def beat(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Send a heartbeat. Raises HostlerError; Unauthenticated when the registration is gone."""
        answer = await self.ask("POST", "/api/workers/heartbeat", {"workerId": self.name, **said})
        if isinstance(next_ms := answer.get("nextCheckIn"), int | float) and next_ms > 0:
            self.heartbeat_s = next_ms / 1000
        return answer

    async def forget(self) -> None:
        """Leave the list of workers, and forget the token. Raises Unavailable, Denied."""
        with contextlib.suppress(NotFound, Unauthenticated):
            await self.ask("DELETE", f"/api/workers/{quote(self.name, safe='')}")
        self._token_file.remove()

    # Calling

    async def call(self, method: str, path: str, body: Any = None, **how: Any) -> dict[str, Any]:
        """Make a call; where the token is refused, register again and make it once more. Raises HostlerError."""
        used = self._token
        try:
            return await self.ask(method, path, body, **how)
        except Unauthenticated:
            await self._register_again(used)
        try:
            return await self.ask(method, path, body, **how)
        except Unauthenticated as error:
            raise Unavailable(f"A token that is new was refused: {error}") from error

    async def renewed(self, call: Callable[[], Any]) -> dict[str, Any]:
        """Make a call that only makes sense under this registration: {} where it had to be renewed instead."""
        used = self._token
        try:
            answer: dict[str, Any] = await call()
        except Unauthenticated:
            await self._register_again(used)
            return {}
        return answer

    async def ask(
        self, method: str, path: str, body: Any = None, *, more: Mapping[str, str] | None = None,
        credentials: Mapping[str, str] | None = None, content: Callable[[], Any] = lambda: None,
        timeout: httpx.Timeout = PROMPT,
    ) -> dict[str, Any]:  # fmt: skip
        """Make one request, of `body` as JSON or of `content`, and return the JSON of its answer; {} for 204.

        `credentials` replace the token, and `more` are other headers. Raises HostlerError.
        """
        given = {"x-worker-token": self._token or ""} if credentials is None else dict(credentials)
        given |= more or {}
        if body is not None:
            given["content-type"] = "application/json"
        data = orjson.dumps(body) if body is not None else content()
        with _weather(self.url):
            response = await self._http.request(
                method, self.url + path, headers=given, content=data, timeout=timeout
            )
        self._note_rate(response.headers)
        if response.status_code == httpx.codes.NO_CONTENT:
            return {}
        if not response.is_success:
            raise _refusal(response)
        try:
            answer = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise Unavailable(f"What answers at {self.url} is not Hostler's API.")
        return answer

    @contextlib.asynccontextmanager
    async def download(self, path: str) -> AsyncIterator[httpx.Response]:
        """Yield the answer to a GET while its body arrives. Raises HostlerError."""
        used = self._token
        with _weather(self.url):
            async with self._http.stream(
                "GET", self.url + path, headers={"x-worker-token": used or ""}, timeout=BULKY
            ) as response:
                if response.status_code == httpx.codes.OK:
                    yield response
                    return
                await response.aread()
        refusal = _refusal(response)
        if isinstance(refusal, Unauthenticated):
            await self._register_again(used)
            raise Unavailable("This agent had to register again.") from refusal
        raise refusal

    def path_of(self, url: str) -> str | None:
        """Return path and query of a URL of this API, the only server that gets our token; None for others."""
        try:
            there, here = urlsplit(url), urlsplit(self.url)
            if _origin(there) != _origin(here):
                return None
        except ValueError:
            return None
        return there._replace(scheme="", netloc="", fragment="").geturl()

    async def close(self) -> None:
        """Hang up. Safe to run twice."""
        await self._http.aclose()

    def _note_rate(self, headers: httpx.Headers) -> None:
        with contextlib.suppress(KeyError, ValueError):
            left, limit = int(headers["x-ratelimit-remaining"]), int(headers["x-ratelimit-limit"])
            self.low_on_rate = left < limit * RESERVE


def _client(url: str, ca_file: Path | None) -> httpx.AsyncClient:
    """Return a client that checks certificates, goes through the site's proxy, and follows no redirect."""
    tls = httpx.create_ssl_context()
    if ca_file is not None:
        tls.load_verify_locations(ca_file)
    return httpx.AsyncClient(
        verify=tls,
        # HTTPS_PROXY and NO_PROXY, as the site has them
        trust_env=not is_loopback(urlsplit(url).hostname or ""),
        limits=httpx.Limits(
            max_connections=None, max_keepalive_connections=64, keepalive_expiry=KEEP_ALIVE_S
        ),
        headers={"User-Agent": f"hostler-agent/{__version__}", "Accept": "application/json, */*;q=0.5"},
        follow_redirects=False,
    )


@contextlib.contextmanager
def _weather(url: str) -> Iterator[None]:
    """Turn what can happen to a connection into Unavailable."""
    try:
        yield
    except httpx.TransportError as error:
        what = str(error) or type(error).__name__
        raise Unavailable(f"{url} cannot be reached: {what}") from error
    except (httpx.HTTPError, ssl.SSLError) as error:
        raise Unavailable(f"{url} answers what is no HTTP: {error}") from error


def _refusal(response: httpx.Response) -> HostlerError:
    """Return what an answer other than success means."""
    status, code = response.status_code, response.headers.get("x-error-code")
    if response.is_redirect:
        return Unavailable(
            f"The API redirects to {response.headers.get('location')}; give that URL to --url."
        )
    if status >= 500 or code is None:  # a proxy's page, or a server that is being replaced
        return Unavailable(f"The API answers {status} for now.", retry_after_s=_retry_after_s(response))
    try:
        answer = orjson.loads(response.content)
        message = str(answer.get("message") or answer.get("error"))
        if details := answer.get("details"):
            message = f"{message} ({'; '.join(f'{name}: {what}' for name, what in details.items())})"
    except (orjson.JSONDecodeError, AttributeError):
        message = f"The API answers {status}."
    if code == Stale.code:
        return Stale(message)
    refusal = _REFUSALS.get(status, Invalid)
    if refusal is Unavailable:
        return Unavailable(message, retry_after_s=_retry_after_s(response))
    return refusal(message)


def _retry_after_s(response: httpx.Response) -> int:
    value = response.headers.get("retry-after", "")
    return int(value) if value.isdigit() and len(value) < 6 else 1


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
