"""Where a request may go: what a URL says, and which addresses are public or allowed by the operator.

Messages name the host and never the rest of the URL, which may hold a token.
"""

import functools
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import httpcore

from storage.errors import Invalid

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
AddressRange = ipaddress.IPv4Network | ipaddress.IPv6Network

URL_LIMIT_CHARS = 2048
DEFAULT_PORTS = {"https": 443, "http": 80}

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
_NETLOC = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::[0-9]{1,5})?")
_VISIBLE_ASCII = re.compile(r"[!-~]+")

_UNICAST6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: Refused although Python's `is_global`, in one version or another, lets them pass.
_REFUSED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's wire server: a public address that answers from inside
        "192.0.0.0/24",  # protocol assignments, a cloud's metadata among them (RFC 6890)
        "192.88.99.0/24",  # 6to4 relays (RFC 7526)
        "2001::/23",  # protocol assignments, Teredo among them (RFC 2928, RFC 4380)
        "2001:db8::/32",  # documentation (RFC 3849)
        "2002::/16",  # 6to4: an IPv4 address in disguise (RFC 3056)
        "3fff::/20",  # documentation (RFC 9637)
    )
)


@dataclass(frozen=True)
class Allowed:
    """The operator's exceptions: names and networks that may be private and may be spoken to without TLS."""

    names: frozenset[str]
    networks: tuple[AddressRange, ...]

    def name(self, host: str) -> bool:
        """Tell whether a name is allowed, whatever it leads to."""
        return host in self.names

    def address(self, address: Address) -> bool:
        """Tell whether an address is allowed."""
        return any(address in network for network in self.networks)


@functools.lru_cache(maxsize=16)
def allowed_by(words: tuple[str, ...]) -> Allowed:
    """Return what host names, addresses and networks allow."""
    names, networks = set(), []
    for word in words:
        try:
            networks.append(ipaddress.ip_network(word.strip("[]"), strict=False))
        except ValueError:
            names.add(word.lower())
    return Allowed(frozenset(names), tuple(networks))


def _unwrapped(address: Address) -> Address:
    """Return the IPv4 address that an IPv4-mapped or NAT64 address stands for, any other as it is."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address not in _UNICAST6:
        return False
    if address.is_multicast or address.is_reserved or not address.is_global:
        return False
    return not any(address in network for network in _REFUSED)


def may_reach(address: Address, allowed: Allowed) -> bool:
    """Tell whether an address is public or allowed; what stands for an IPv4 address is judged as that."""
    address = _unwrapped(address)
    return allowed.address(address) or _is_public(address)


def forbidden(host: str) -> Invalid:
    """Return what to refuse a host with that is neither public nor allowed."""
    return Invalid(f"'{host}' is not a host that Hostler may reach.")


@dataclass(frozen=True)
class Target:
    """A URL that passed the checks, in the parts that a request is made of."""

    scheme: str
    host: str
    port: int
    path: str  # with the query
    address: Address | None  # when the host is one

    @property
    def authority(self) -> str:
        """Return host and port as a request names them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def url(self) -> httpcore.URL:
        """Return all of it as httpcore takes it."""
        return httpcore.URL(scheme=self.scheme, host=self.host, port=self.port, target=self.path)


def _split(url: str) -> tuple[SplitResult, int | None]:
    """Take `url` apart; raise Invalid for what parsers are known to read in more than one way."""
    if len(url) > URL_LIMIT_CHARS:
        raise Invalid(f"The URL is longer than {URL_LIMIT_CHARS:,} characters.")
    if not _VISIBLE_ASCII.fullmatch(url) or "\\" in url:
        raise Invalid("The URL holds a space, a backslash, a control character or a letter outside ASCII.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Invalid("The URL has no valid host and port.") from error
    if "@" in parts.netloc:
        raise Invalid("The URL holds a user name or a password; send those in headers.")
    if not _NETLOC.fullmatch(parts.netloc) or port == 0:
        raise Invalid("The URL has no valid host and port.")
    return parts, port


def _literal(host: str, *, bracketed: bool) -> Address | None:
    """Return the address that `host` spells, or None for a name; raise Invalid for what is neither.

    Which host counts as IPv4 is the WHATWG URL Standard's rule ("ends in a number"). The only spelling taken
    is four decimal numbers, for 127.1, 0x7f000001, 2130706433 and 0177.0.0.1 are addresses to some resolvers.
    """
    labels = host.split(".")
    try:
        if bracketed:
            return ipaddress.IPv6Address(host)
        if _NUMERIC_LABEL.fullmatch(labels[-1]):
            return ipaddress.IPv4Address(host)
    except ValueError as error:
        raise Invalid(f"'{host}' is not an address in its usual spelling.") from error
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise Invalid(f"'{host}' is not a host name.")
    return None


def judged(url: str, allowed: Allowed) -> Target:
    """Return where a URL leads, as far as its text tells. Raises Invalid where that is not allowed."""
    parts, port = _split(url)
    host = parts.hostname or ""
    if parts.scheme not in DEFAULT_PORTS:
        raise Invalid("The URL must start with https://.")
    address = _literal(host, bracketed="[" in parts.netloc)
    excepted = allowed.name(host) or (address is not None and allowed.address(_unwrapped(address)))
    if not excepted:
        if address is not None and not _is_public(_unwrapped(address)):
            raise forbidden(host)
        if host == "localhost" or host.endswith(".localhost"):  # loopback by RFC 6761, whatever DNS says
            raise forbidden(host)
        if parts.scheme != "https":
            raise Invalid("The URL must start with https://.")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], path, address)


def check_url(url: str, *, allow: Sequence[str] = ()) -> None:
    """Refuse a URL that may not be requested, as far as its text tells; nothing is looked up.

    `allow` holds host names, addresses and networks that may be private and may use http://. Raises Invalid.
    """
    judged(url, allowed_by(tuple(allow)))
