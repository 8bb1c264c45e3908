"""URLs that users name: which are refused by their text, and what an operator may allow."""

import contextlib
import ipaddress

import pytest

from integrations.outbound import check_url
from storage.errors import HostlerError, Invalid


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com:8443/a/b?c=d#e",
        "https://EXAMPLE.com/%2e%2e/",
        "https://xn--bcher-kva.example/",
        "https://93.184.216.34/",
        "https://[2606:2800:220:1::1]/",
        "https://[64:ff9b::5db8:d822]/",  # NAT64 of a public address
        "https://a_b.example/",
    ],
)
def test_a_public_https_url_passes(url):
    check_url(url)


PRIVATE_HOSTS = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",  # noqa: S104  nothing is bound here
    "0.1.2.3",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "[::1]",
    "[::]",
    "[fe80::1]",
    "[fec0::1]",
    "[fd00::1]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[ff02::1]",
    "[2001:db8::1]",
    "[3fff::1]",
    "[100::1]",
    "[::127.0.0.1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:a9fe:a9fe]",
    "[::ffff:0:127.0.0.1]",
    "[2002:7f00:1::]",
    "[2002:5db8:d822::]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b::a00:1]",
    "[64:ff9b:1::5db8:d822]",
    "[2001::1]",
    "[5f00::1]",
    "[4000::1]",
    "localhost",
    "LOCALHOST",
    "app.localhost",
]


@pytest.mark.parametrize("host", PRIVATE_HOSTS)
def test_a_host_that_is_not_public_is_refused_in_one_sentence(host):
    for port in ("", ":6379"):
        with pytest.raises(Invalid) as refusal:
            check_url(f"https://{host}{port}/")
        assert str(refusal.value) == f"'{host.strip('[]').lower()}' is not a host that Hostler may reach."


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "017700000001",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "127.1",
        "127.0.1",
        "0",
        "1.2.3.4.5",
        "256.1.1.1",
        "1.2.3.0x4",
        "127.0.0.1.",
        "example.com.",
        ".",
        "..",
        "a..b",
        "-a.example",
        "a-.example",
        "%31%32%37.0.0.1",
        "127.0.0.1%00.example.com",
        "example.com%2f",
        "[::1",
        "::1]",
        "[::1]x",
        "[::1]x:80",
        "a[::1]",
        "[::1%25eth0]",
        "[fe80::1%eth0]",
        "[127.0.0.1]",
        "[v1.x]",
        "a'b.example",
        "a,b.example",
        "a" * 64 + ".example",
        ".".join(["a" * 60] * 5),
    ],
)
def test_an_unusual_spelling_of_a_host_is_refused(host):
    with pytest.raises(Invalid):
        check_url(f"https://{host}/")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://",
        "https:///path",
        "https:example.com",
        "//example.com/",
        "example.com",
        "http://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "unix:///run/redis.sock",
        "ftp://example.com/",
        "javascript:alert(1)",
        "https://user@example.com/",
        "https://user:secret@example.com/",
        "https://example.com@127.0.0.1/",
        "https://127.0.0.1#@example.com/",
        "https://example.com\\@127.0.0.1/",
        "https://127.0.0.1\\.example.com/",
        "https://example.com:0/",
        "https://example.com:/",
        "https://example.com:65536/",
        "https://example.com:80:80/",
        "https://example.com:+443/",
        "https://example.com/a b",
        " https://example.com/",
        "https://exam\nple.com/",
        "https://example.com/\r\nHost: x",
        "https://example.com/\x00",
        "https://example.com/\x7f",
        "https://１２７.0.0.1/",  # noqa: RUF001  digits of another width, which some parsers fold into ours
        "https://127。0。0。1/",
        "https://bücher.example/",
        "https://example.com/ü",
        "https://example.com/" + "a" * 2048,
    ],
)
def test_a_url_that_parsers_might_read_in_two_ways_is_refused(url):
    with pytest.raises(Invalid):
        check_url(url)


def test_no_refusal_repeats_what_may_be_secret():
    for url in (
        "https://user:hunter2@example.com/",
        "http://example.com/?token=hunter2",
        "https://[::1]/hunter2",
    ):
        with pytest.raises(Invalid) as refusal:
            check_url(url)
        assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "allow"),
    [
        ("http://127.0.0.1:8080/", ["127.0.0.1"]),
        ("http://[::1]/", ["::1"]),
        ("http://[::1]/", ["[::1]"]),
        ("http://[::ffff:10.1.2.3]/", ["10.0.0.0/8"]),
        ("https://10.1.2.3/", ["192.168.0.0/16", "10.0.0.0/8"]),
        ("http://Build.Internal/", ["build.internal"]),
        ("http://localhost/", ["LOCALHOST"]),
    ],
)
def test_what_the_operator_allows_passes_even_without_tls(url, allow):
    check_url(url, allow=allow)
    with pytest.raises(Invalid):
        check_url(url)


def test_an_exception_covers_nothing_beside_itself():
    for url in (
        "http://127.0.0.2/",
        "http://sub.build.internal/",
        "http://user@127.0.0.1/",
        "ftp://127.0.0.1/",
    ):
        with pytest.raises(Invalid):
            check_url(url, allow=["127.0.0.1", "build.internal"])


def test_every_refusal_is_one_of_hostlers_own_errors():
    for number in range(256):
        with contextlib.suppress(HostlerError):
            check_url(f"https://exa{chr(number)}mple.com/")
        with contextlib.suppress(HostlerError):
            check_url(f"https://{ipaddress.IPv4Address(number << 24)}/")
