"""Addresses: forwarding headers count only when a trusted proxy wrote them."""

from dataclasses import replace

import pytest
from falcon.asgi import Request

from api import addresses
from settings import Settings

PROXY = "10.0.0.5"


def request(peer: str | None = "203.0.113.7", scheme: str = "http", **headers: str) -> Request:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "scheme": scheme,
        "server": ("127.0.0.1", 8080),
        "client": (peer, 50_000) if peer else None,
        "headers": [
            (name.lower().encode(), value.encode())
            for name, value in {"Host": "hostler.test", **named}.items()
        ],
    }
    return Request(scope, None)  # type: ignore[arg-type]


@pytest.fixture
def alone() -> Settings:
    return Settings()


@pytest.fixture
def proxied() -> Settings:
    return Settings(trusted_proxies=("10.0.0.0/8", "fd00::/8"))


@pytest.mark.parametrize("header", ["X_Forwarded_For", "X_Real_IP", "Forwarded"])
def test_a_client_cannot_say_where_it_comes_from(alone: Settings, proxied: Settings, header: str) -> None:
    value = "for=192.0.2.1" if header == "Forwarded" else "192.0.2.1"
    for settings in (alone, proxied):
        assert addresses.peer(request(**{header: value}), settings) == "203.0.113.7"


def test_a_trusted_proxy_tells_the_client(proxied: Settings) -> None:
    assert addresses.peer(request(PROXY, X_Forwarded_For="192.0.2.1"), proxied) == "192.0.2.1"


def test_what_the_client_itself_put_before_the_proxys_word_is_not_believed(proxied: Settings) -> None:
    sent = "127.0.0.1, 10.1.1.1, 192.0.2.1, 10.9.9.9"
    assert addresses.peer(request(PROXY, X_Forwarded_For=sent), proxied) == "192.0.2.1"


@pytest.mark.parametrize("value", ["", "unknown", "192.0.2.1, garbage", "_hidden", ","])
def test_beyond_an_unreadable_hop_nothing_is_believed(proxied: Settings, value: str) -> None:
    assert addresses.peer(request(PROXY, X_Forwarded_For=value), proxied) == PROXY


def test_headers_that_the_proxy_does_not_set_are_not_read_even_from_it(proxied: Settings) -> None:
    req = request(
        PROXY, X_Forwarded_For="192.0.2.1", X_Real_IP="192.0.2.9", Forwarded="for=192.0.2.9;host=evil"
    )
    assert addresses.peer(req, proxied) == "192.0.2.1"
    assert addresses.seen_url(req, proxied) == "http://hostler.test"


def test_a_client_without_an_address_is_local_and_trusted_by_nobody(proxied: Settings) -> None:
    assert addresses.peer(request(None, X_Forwarded_For="192.0.2.1"), proxied) == "local"


def test_an_ipv4_address_in_ipv6_clothes_is_the_same_client(proxied: Settings) -> None:
    assert addresses.peer(request("::ffff:203.0.113.7"), proxied) == "203.0.113.7"
    assert addresses.peer(request("::ffff:10.0.0.5", X_Forwarded_For="192.0.2.1"), proxied) == "192.0.2.1"


def test_limits_count_an_ipv6_client_by_its_network() -> None:
    assert addresses.counted_as("2001:db8::1") == addresses.counted_as("2001:db8::ffff")
    assert addresses.counted_as("2001:db8::1") != addresses.counted_as("2001:db8:0:1::1")
    assert addresses.counted_as("203.0.113.7") == "203.0.113.7"
    assert addresses.counted_as("local") == "local"


def test_only_a_trusted_proxy_tells_scheme_and_host(alone: Settings, proxied: Settings) -> None:
    told = {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "hostler.example"}
    assert addresses.base_url(request(PROXY, **told), proxied) == "https://hostler.example"
    assert addresses.base_url(request(PROXY, **told), alone) == "http://hostler.test"
    assert addresses.base_url(request(**told), proxied) == "http://hostler.test"


@pytest.mark.parametrize("host", ["evil.example/path", "a b", "user@evil.example", "x\r\ny", "", "a" * 300])
def test_a_host_that_is_none_never_gets_into_a_url(proxied: Settings, host: str) -> None:
    assert addresses.seen_url(request(PROXY, X_Forwarded_Host=host), proxied) == "http://hostler.test"
    assert addresses.seen_url(request(Host=host), proxied) in ("http://localhost", "http://hostler.test")


def test_the_public_url_goes_before_what_the_client_said(alone: Settings) -> None:
    settings = replace(alone, public_url="https://hostler.example/base")
    assert addresses.base_url(request(), settings) == "https://hostler.example/base"


def test_our_origin_is_the_public_one_or_the_one_addressed(alone: Settings) -> None:
    public = replace(alone, public_url="https://Hostler.example:443/base")
    assert addresses.is_own_origin(request(Origin="https://hostler.example"), public)
    assert addresses.is_own_origin(request(Origin="http://hostler.test"), public)
    assert addresses.is_own_origin(request(Origin="http://hostler.test", Host="Hostler.test:80"), alone)
    assert addresses.is_own_origin(request(Origin="http://[::1]:8080", Host="[::1]:8080"), alone)


@pytest.mark.parametrize(
    "origin",
    ["", "null", "https://hostler.test", "http://hostler.test:81", "http://hostler.test.evil.example",
     "http://evil.example", "http://hostler.test/", "hostler.test", "http://hostler.test, http://evil.example"],
)  # fmt: skip
def test_any_other_origin_is_not_ours(alone: Settings, origin: str) -> None:
    assert not addresses.is_own_origin(request(Origin=origin), alone)


def test_a_request_without_an_origin_is_not_ours(alone: Settings) -> None:
    assert not addresses.is_own_origin(request(), alone)


def test_tls_is_known_from_the_socket_the_proxy_or_the_public_url(alone: Settings, proxied: Settings) -> None:
    assert not addresses.over_tls(request(), alone)
    assert addresses.over_tls(request(scheme="https"), alone)
    assert addresses.over_tls(request(scheme="wss"), alone)
    assert addresses.over_tls(request(PROXY, X_Forwarded_Proto="https"), proxied)
    assert addresses.over_tls(request(), replace(alone, public_url="https://hostler.example"))
