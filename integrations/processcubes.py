"""Other Hostlers and Cubies, asked over HTTP which ProcessCubes they have."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson

from integrations import outbound
from integrations.outbound import INTERNET, Network
from storage.errors import BadGateway, Unavailable

TIMEOUT_S = 5.0
LIMIT_BYTES = 1024 * 1024
#: How many ProcessCubes of one neighbour are read.
MOST_CUBES = 200
_TEXT_LIMIT_CHARS = 500
_URL_LIMIT_CHARS = 2048


class Refused(BadGateway):
    """The neighbour does not know the API key, or is neither a Cuby nor a Hostler."""

    code = "SUB_CUBY_REFUSED"


@dataclass(frozen=True, slots=True)
class Cube:
    """A ProcessCube as a neighbour tells of it."""

    product_id: str
    name: str
    engine_url: str
    lowcode_urls: tuple[str, ...]
    authority_url: str | None

    @property
    def shown(self) -> dict[str, Any]:
        """Return it as Cuby's clients see one."""
        return {
            "productId": self.product_id, "name": self.name, "engineUrl": self.engine_url,
            "lowcodeUrls": list(self.lowcode_urls), "authorityUrl": self.authority_url,
        }  # fmt: skip


async def ask(url: str, key: str, *, allow: Sequence[str] = (), network: Network = INTERNET) -> list[Cube]:
    """Return the ProcessCubes of the Hostler or Cuby at `url`, its own and not those that it knows from others.

    Raises Invalid for an address that may not be reached, Refused, or Unavailable for what may be tried again.
    """
    reply = await asyncio.to_thread(
        outbound.ask, "GET", f"{url}/api/processcubes?scope=local",
        headers={"accept": "application/json", "authorization": f"Bearer {key}"},
        limit_bytes=LIMIT_BYTES, timeout_s=TIMEOUT_S, allow=allow, network=network,
    )  # fmt: skip
    host = urlsplit(url).hostname or ""
    if reply.status >= 500 or reply.status in outbound.WORTH_ANOTHER_TRY:
        raise Unavailable(f"'{host}' answered {reply.status}.", retry_after_s=15)
    if reply.status != 200:
        raise Refused(f"'{host}' answered {reply.status}: it does not know the API key, or is no Cuby.")
    try:
        told = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        told = None
    if not isinstance(told, list):
        raise Refused(f"'{host}' does not answer as a Cuby should.")
    found = (_cube(each) for each in told[:MOST_CUBES])
    return [cube for cube in found if cube is not None]


def _cube(told: Any) -> Cube | None:
    """Return what a neighbour tells of one, or None for what is none: a page will make links of the addresses."""
    if not isinstance(told, Mapping):
        return None
    product, name = told.get("productId"), told.get("name")
    engine = _web(told.get("engineUrl"))
    if not isinstance(product, str) or not isinstance(name, str) or engine is None:
        return None
    lowcode = told.get("lowcodeUrls")
    urls = [_web(each) for each in lowcode[:32]] if isinstance(lowcode, list) else []
    return Cube(
        product[:_TEXT_LIMIT_CHARS], name[:_TEXT_LIMIT_CHARS], engine, tuple(each for each in urls if each),
        _web(told.get("authorityUrl")),
    )  # fmt: skip


def _web(url: Any) -> str | None:
    usable = isinstance(url, str) and url.startswith(("https://", "http://")) and len(url) <= _URL_LIMIT_CHARS
    return url if usable and url.isprintable() else None
