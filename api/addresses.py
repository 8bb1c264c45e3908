"""Where a request really comes from, and under which address it reached us, as trusted proxies tell.

Only X-Forwarded-For, -Proto and -Host are read, and only from a peer that HOSTLER_TRUSTED_PROXIES names.
`Forwarded` and `X-Real-IP` are not: a proxy that sets one kind of header passes the others on as the client
wrote them.
"""

import ipaddress
import re
from functools import lru_cache

from falcon.asgi import Request

from settings import Settings

_HOST = re.compile(r"[A-Za-z0-9._-]{1,255}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")
_WEB_SCHEME = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_DEFAULT_PORT = {"http": ":80", "https": ":443"}

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def peer(req: Request, settings: Settings) -> str:
    """Return the address of the client: the nearest one on the way that is not a trusted proxy.

    A client on a Unix socket is called `local`.
    """
    nearest = _socket_peer(req)
    if not _trusted(nearest, settings.trusted_proxies):
        return nearest
    for hop in reversed((req.get_header("X-Forwarded-For") or "").split(",")):
        address = _parsed(hop)
        if address is None:
            break  # what lies beyond an unreadable hop is hearsay
        nearest = str(address)
        if not _trusted(nearest, settings.trusted_proxies):
            break
    return nearest


def counted_as(address: str) -> str:
    """Return what limits count an address as: an IPv6 client owns a /64 and may change its address."""
    parsed = _parsed(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return address


def scheme(req: Request, settings: Settings) -> str:
    """Return `https` or `http`: how the client, as far as we can know, spoke to the first of our machines."""
    told = (_told(req, settings, "X-Forwarded-Proto") or req.scheme).lower()
    return _WEB_SCHEME.get(told) or _WEB_SCHEME.get(req.scheme, "http")


def seen_url(req: Request, settings: Settings) -> str:
    """Return scheme and host as the client addressed them, e.g. `https://hostler.example`."""
    host = _told(req, settings, "X-Forwarded-Host") or ""
    if not _HOST.fullmatch(host):
        host = req.netloc if _HOST.fullmatch(req.netloc) else "localhost"
    spoken = scheme(req, settings)
    return f"{spoken}://{host.lower().removesuffix(_DEFAULT_PORT[spoken])}"


def base_url(req: Request, settings: Settings) -> str:
    """Return the start of absolute URLs to us: HOSTLER_PUBLIC_URL, else as the client addressed us."""
    return settings.public_url or seen_url(req, settings)


def is_own_origin(req: Request, settings: Settings) -> bool:
    """Tell whether the request's Origin header names ourselves; a request without one does not."""
    origin = (req.get_header("Origin") or "").lower()
    own = {seen_url(req, settings)}
    if settings.public_url:
        public = re.match(r"https?://[^/]+", settings.public_url.lower())
        spoken = settings.public_url.partition(":")[0].lower()
        own |= {public[0].removesuffix(_DEFAULT_PORT[spoken])} if public else set()
    return origin in own


def over_tls(req: Request, settings: Settings) -> bool:
    """Tell whether clients reach us by TLS, so that cookies may be marked Secure."""
    return base_url(req, settings).startswith("https://") or scheme(req, settings) == "https"


def _told(req: Request, settings: Settings, header: str) -> str | None:
    """Return what the nearest proxy, if trusted, says in `header`; it wrote the last of several values."""
    value = req.get_header(header)
    if not value or not _trusted(_socket_peer(req), settings.trusted_proxies):
        return None
    return value.rpartition(",")[2].strip()


def _socket_peer(req: Request) -> str:
    client = req.scope.get("client")
    address = _parsed(client[0]) if client else None
    return str(address) if address else "local"


def _parsed(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text.strip())
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


@lru_cache(maxsize=4096)
def _trusted(address: str, networks: tuple[str, ...]) -> bool:
    parsed = _parsed(address)
    return parsed is not None and any(parsed in ipaddress.ip_network(network) for network in networks)
