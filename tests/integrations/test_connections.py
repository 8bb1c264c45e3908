"""The way to an address: names are judged by all they lead to, and what was judged is what is connected to."""

import socket
import threading
import time

import pytest
from outside import OK, PUBLIC, Certificates, FakeInternet, get

from integrations.outbound import Network
from storage.errors import Invalid, Unavailable

# Names


@pytest.mark.parametrize(
    "answer",
    [
        ["127.0.0.1"],
        ["10.0.0.7"],
        ["169.254.169.254"],
        ["::ffff:127.0.0.1"],
        ["fe80::1%1"],
        [PUBLIC, "127.0.0.1"],
    ],
)
def test_a_name_that_leads_inside_is_refused_before_any_connection(answer):
    internet = FakeInternet(answer, answer)
    for port in (443, 6379):
        with pytest.raises(Invalid, match=r"^'inside\.example' is not a host that Hostler may reach\.$"):
            get(f"https://inside.example:{port}/", allow=[], network=internet.network())
    assert internet.connected == []


def test_the_address_that_was_judged_is_the_one_connected_to(serve, tmp_path):
    certificates = Certificates(tmp_path, "rebinding.example")
    server = serve(OK, certificates.server)
    internet = FakeInternet([PUBLIC], ["127.0.0.1"], port=server.port)
    fetched, body = get("https://rebinding.example/", allow=[], network=internet.network(certificates.client))
    assert (fetched.size_bytes, body) == (5, b"hello")
    assert internet.looked_up == ["rebinding.example"]
    assert internet.connected == [PUBLIC]


def test_a_second_request_looks_the_name_up_and_judges_it_anew(serve, tmp_path):
    certificates = Certificates(tmp_path, "rebinding.example")
    server = serve(OK, certificates.server)
    internet = FakeInternet([PUBLIC], ["127.0.0.1"], port=server.port)
    get("https://rebinding.example/", network=internet.network(certificates.client))
    with pytest.raises(Invalid):
        get("https://rebinding.example/", allow=[], network=internet.network(certificates.client))
    assert internet.connected == [PUBLIC]


def test_the_next_address_is_tried_when_one_refuses(serve):
    server = serve()
    internet = FakeInternet(["127.0.0.9", "127.0.0.1"])

    def connect(address: str, port: int, timeout_s: float) -> socket.socket:
        if address == "127.0.0.9":
            raise ConnectionRefusedError
        return socket.create_connection((address, port), timeout=timeout_s)

    network = Network(look_up=internet.look_up, connect=connect)
    assert get(f"http://two.example:{server.port}/", allow=["two.example"], network=network)[1] == b"hello"


def test_a_name_in_an_allowed_network_still_needs_tls():
    with pytest.raises(Invalid, match="https"):
        get("http://inside.example/", allow=["10.0.0.0/8"], network=FakeInternet().network())


def test_a_name_that_nobody_knows_may_be_tried_again():
    def look_up(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(Unavailable):
        get("https://nobody.example/", network=Network(look_up=look_up))


def test_a_look_up_that_never_ends_is_cut_at_the_deadline():
    released = threading.Event()

    def look_up(host: str, port: int) -> list[str]:
        released.wait(10)
        return [PUBLIC]

    started = time.monotonic()
    with pytest.raises(Unavailable):
        get("https://slow.example/", timeout_s=0.3, network=Network(look_up=look_up))
    assert time.monotonic() - started < 3
    released.set()


# TLS


def test_a_certificate_for_another_name_is_refused(serve, tmp_path):
    certificates = Certificates(tmp_path, "right.example")
    server = serve(OK, certificates.server)
    internet = FakeInternet([PUBLIC], [PUBLIC], port=server.port)
    network = internet.network(certificates.client)
    with pytest.raises(Unavailable):
        get("https://wrong.example/", network=network)
    assert server.requests == []
    assert get("https://right.example/", network=network)[1] == b"hello"


def test_a_certificate_of_an_unknown_authority_is_refused(serve, tmp_path):
    server = serve(OK, Certificates(tmp_path, "right.example").server)
    internet = FakeInternet([PUBLIC], port=server.port)
    with pytest.raises(Unavailable):
        get("https://right.example/", network=internet.network())
    assert server.requests == []


def test_the_name_is_sent_to_the_server_and_not_the_address(serve, tmp_path):
    certificates = Certificates(tmp_path, "named.example")
    asked: list[str | None] = []
    certificates.server.sni_callback = lambda connection, name, context: asked.append(name)
    server = serve(OK, certificates.server)
    get(
        "https://named.example/",
        network=FakeInternet([PUBLIC], port=server.port).network(certificates.client),
    )
    assert asked == ["named.example"]
    assert b"host: named.example\r\n" in server.requests[0].lower()
