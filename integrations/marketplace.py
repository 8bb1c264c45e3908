"""The marketplace above ours, asked over HTTP: what it offers, and whether it knows a key.

docs/cuby.md describes the four questions. Answers are held to a size and a time, and nothing of them is believed to be
more than text: a product's entry is read field by field, what is no product is left out.
"""

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import orjson

from integrations import outbound
from integrations.outbound import INTERNET, Network
from storage.errors import BadGateway, Unavailable

TIMEOUT_S = 10.0
LIMIT_BYTES = 4 * 1024 * 1024
#: For how long an answer serves again.
FRESH_S = 60.0
#: How many entries of a list are read.
MOST_ENTRIES = 1000

List = Literal["products", "courses", "videos"]

_NAME = re.compile(r"[a-z0-9]([a-z0-9_.-]{0,62}[a-z0-9])?")
_PACKAGE = re.compile(r"(@[a-z0-9][a-z0-9._-]{0,100}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,100}")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}")
_TEXT_LIMIT_CHARS = 2000


class Refused(BadGateway):
    """The marketplace does not know the key, or does not do what it was asked."""

    code = "MARKETPLACE_REFUSED"


@dataclass(frozen=True, slots=True)
class Offer:
    """A product that the marketplace above offers, from a registry of packages."""

    id: str
    name: str
    description: str
    version: str
    kind: Literal["npm", "pypi"]
    package: str
    url: str | None


@dataclass(slots=True)
class Upstream:
    """One marketplace at `url`; `allow` names private hosts that may be reached all the same."""

    url: str
    allow: Sequence[str] = ()
    network: Network = INTERNET
    _kept: dict[tuple[str, str], tuple[float, Any]] = field(default_factory=dict)

    async def products(self, key: str) -> list[Offer]:
        """Return what it offers to the bearer of `key`. Raises Refused, Unavailable."""
        found = (_offer(entry) for entry in await self._list("products", key))
        return [offer for offer in found if offer is not None]

    async def shown(self, which: Literal["courses", "videos"], key: str) -> list[dict[str, Any]]:
        """Return its courses or videos, those fields of them that are text. Raises Refused, Unavailable."""
        return [shown for entry in await self._list(which, key) if (shown := _shown(entry))]

    async def knows(self, key: str) -> bool:
        """Ask whether it knows `key`. Raises Refused, Unavailable."""
        reply = await self._ask("GET", "apikey", key)
        if reply.status in {401, 403, 404}:
            return False
        if reply.status != 200:
            self._refuse(reply.status)
        told = _read(reply, self._host)
        return told.get("valid") is True if isinstance(told, Mapping) else False

    async def register_trial(self, key: str) -> None:
        """Have it take `key` for a trial. Raises Refused, Unavailable."""
        reply = await self._ask("POST", "trials", key, orjson.dumps({"apiKey": key}))
        if reply.status not in {200, 201, 202, 204}:
            self._refuse(reply.status)

    async def _list(self, which: List, key: str) -> list[Any]:
        kept_ms, kept = self._kept.get((which, key), (-FRESH_S, None))
        if time.monotonic() - kept_ms < FRESH_S:
            return list(kept)
        told = _read(await self._answered("GET", which, key), self._host)
        entries = told.get(which) if isinstance(told, Mapping) else told
        if not isinstance(entries, list):
            raise Unavailable(f"'{self._host}' does not answer as a marketplace should.")
        if len(self._kept) > 64:
            self._kept.clear()
        self._kept[which, key] = time.monotonic(), entries[:MOST_ENTRIES]
        return entries[:MOST_ENTRIES]

    async def _answered(self, method: str, path: str, key: str) -> outbound.Reply:
        reply = await self._ask(method, path, key)
        if reply.status != 200:
            self._refuse(reply.status)
        return reply

    async def _ask(self, method: str, path: str, key: str, body: bytes | None = None) -> outbound.Reply:
        headers = {"accept": "application/json"}
        if key:
            headers["authorization"] = f"Bearer {key}"
        if body is not None:
            headers["content-type"] = "application/json"
        return await asyncio.to_thread(
            outbound.ask, method, f"{self.url}/{path}", headers=headers, body=body, limit_bytes=LIMIT_BYTES,
            timeout_s=TIMEOUT_S, allow=self.allow, network=self.network,
        )  # fmt: skip

    @property
    def _host(self) -> str:
        return urlsplit(self.url).hostname or ""

    def _refuse(self, status: int) -> None:
        if status >= 500 or status in outbound.WORTH_ANOTHER_TRY:
            raise Unavailable(f"'{self._host}' answered {status}.", retry_after_s=30)
        raise Refused(
            f"'{self._host}' answered {status}: it does not know the API key, or this is not offered."
        )


def _read(reply: outbound.Reply, host: str) -> Any:
    try:
        return orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        raise Unavailable(f"'{host}' does not answer as a marketplace should.") from None


def _word(entry: Mapping[str, Any], *names: str) -> str:
    value = next((entry[name] for name in names if isinstance(entry.get(name), str)), "")
    return str(value)[:_TEXT_LIMIT_CHARS]


def _offer(entry: Any) -> Offer | None:
    if not isinstance(entry, Mapping):
        return None
    identifier, version = _word(entry, "id", "productId"), _word(entry, "version", "latestVersion")
    npm, pypi = _word(entry, "npmPackage"), _word(entry, "pypiPackage")
    package = npm or pypi
    if not (_NAME.fullmatch(identifier) and _PACKAGE.fullmatch(package) and _VERSION.fullmatch(version)):
        return None
    return Offer(
        identifier, _word(entry, "name") or identifier, _word(entry, "description"), version,
        "npm" if npm else "pypi", package, _web(_word(entry, "url")),
    )  # fmt: skip


def _web(url: str) -> str | None:
    return url if url.startswith(("https://", "http://")) else None


def _shown(entry: Any) -> dict[str, Any]:
    """Return the fields of a course or a video that a page may show; no address but of the web is among them."""
    if not isinstance(entry, Mapping):
        return {}
    texts = {
        name: _word(entry, name)
        for name in ("id", "title", "description", "language", "duration", "publishedAt")
    }
    addresses = {name: _web(_word(entry, name)) for name in ("url", "thumbnailUrl")}
    shown = {name: value for name, value in (texts | addresses).items() if value}
    return shown if "title" in shown and "url" in shown else {}
