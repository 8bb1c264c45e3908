"""Attacks on ports of one dialect, and by credentials for one dialect: nothing else is reached through them."""

import re
import secrets
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from servers import NO_TLS
from target import Target, free_port, until
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from api.app import groups
from api.endpoint import OPEN, ROLES_OF, Endpoint, Role
from api.listeners import DIALECTS, groups_of

POLL = "/socket.io/?EIO=4&transport=polling"
#: What would change what other tests rely on, if somebody were let in: nobody is, but for those who may.
ROLES = {"nobody": "", "viewer": "r", "operator": "w", "admin": "a", "agent": "worker"}


@dataclass
class Ports:
    """A web process with two ports of each dialect: one that lets in whoever is here, and one that asks."""

    open: dict[str, str]
    asking: dict[str, str]


@pytest.fixture(scope="module")
def ports(target: Target) -> Iterator[Ports]:
    numbers = {name: (free_port(), free_port()) for name in DIALECTS}
    words = [
        f"{name}=127.0.0.1:{free},{name}+auth=127.0.0.1:{asking}" for name, (free, asking) in numbers.items()
    ]
    port = target.web("ports", HOSTLER_LISTEN=",".join(words), WEB_CONCURRENCY="1")
    target.await_web("ports", port)
    urls = {name: [f"http://127.0.0.1:{each}" for each in pair] for name, pair in numbers.items()}
    yield Ports(
        {name: pair[0] for name, pair in urls.items()}, {name: pair[1] for name, pair in urls.items()}
    )
    target.processes["ports"].terminate()
    target.processes["ports"].wait(20)


def _asked(client: httpx.Client, endpoint: Endpoint) -> tuple[int, str]:
    """Return the status and, of a refusal, the words; what streams is not waited for."""
    path = re.sub(r"{[^}]+}", "no-such-thing", endpoint.path)
    body: dict[str, Any] = {"json": {}} if endpoint.method in {"POST", "PUT", "PATCH"} else {}
    with client.stream(endpoint.method, path, **body) as answer:
        if answer.status_code >= 400:
            answer.read()
        return answer.status_code, answer.text if answer.status_code >= 400 else ""


def _of(dialect: str) -> list[Endpoint]:
    return [each for group in groups_of(DIALECTS[dialect], groups()) for each in group.endpoints]


def _by_role(status: int, said: str) -> bool:
    return status == 403 and "role." in said


@pytest.mark.proves("A15")
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_port_that_asks_admits_the_roles_that_are_declared_and_serves_nothing_else(
    target: Target, ports: Ports, dialect: str, evidence: list[str]
) -> None:
    served = _of(dialect)
    for who, letter in ROLES.items():
        if who == "admin":  # who may do all of it does it in the matrix of the main port
            continue
        client = target.client(who if letter else None, url=ports.asking[dialect])
        for endpoint in served:
            if endpoint.role & OPEN or (letter and ROLES_OF[letter] & endpoint.role):
                continue
            status, said = _asked(client, endpoint)
            spoken = f"{who} {endpoint.method} {endpoint.path} answered {status} {said}"
            told = said or "role."  # an answer to HEAD says nothing
            assert _by_role(status, told) if letter else status == 401, spoken
    paths = {each.path for each in served}
    others = [each for group in groups() for each in group.endpoints if each.path not in paths]
    admin = target.client("admin", url=ports.asking[dialect])
    for endpoint in others:
        if endpoint.method != "WS":
            status, said = _asked(admin, endpoint)
            assert status in {404, 405}, f"{endpoint.method} {endpoint.path} answered {status} {said}"
    evidence.append(f"{dialect}: {len(served)} endpoints by role, {len(others)} others 404")


@pytest.mark.proves("A15")
@pytest.mark.parametrize("dialect", DIALECTS)
def test_whoever_is_here_is_an_operator_of_that_dialect_and_no_admin(
    target: Target, ports: Ports, dialect: str
) -> None:
    stranger = target.client(url=ports.open[dialect])
    for endpoint in _of(dialect):
        may = bool(endpoint.role & (ROLES_OF["w"] | OPEN))
        if may and endpoint.method != "GET":
            continue  # an operator's changes are tried in the matrix of the main port
        status, said = _asked(stranger, endpoint)
        spoken = f"{endpoint.method} {endpoint.path} answered {status} {said}"
        assert (status != 401 and not _by_role(status, said)) if may else _by_role(status, said), spoken
    for role in ("viewer", "agent"):  # who says who it is gets no more than that
        known = target.client(role, url=ports.open[dialect])
        change = next(each for each in _of(dialect) if each.method == "POST" and each.role is Role.OPERATOR)
        assert _by_role(*_asked(known, change)), role
    assert target.client(url=ports.open[dialect], X_API_Key="cb_forged").get(
        next(each.path for each in _of(dialect) if each.method == "GET" and each.role is Role.VIEWER)
    ).status_code == 401  # fmt: skip


@pytest.mark.proves("A41")
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_page_of_another_site_gets_nothing_through_an_open_port(
    target: Target, ports: Ports, dialect: str, evidence: list[str]
) -> None:
    url = ports.open[dialect]
    port = url.rpartition(":")[2]
    foreign: list[dict[str, str]] = [
        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": target.url},
        {"Origin": f"http://127.0.0.1.evil.example:{port}"}, {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"}, {"Host": f"evil.example:{port}"}, {"Host": "localhost.evil.example"},
        {"Host": f"evil.example:{port}", "Origin": f"http://evil.example:{port}", "Sec-Fetch-Site": "same-origin"},
    ]  # fmt: skip
    guarded = [each for each in _of(dialect) if not each.role & OPEN]
    asked = [each for each in guarded if each.method == "GET"] + [
        next(each for each in guarded if each.method == method)
        for method in ("POST", "PUT", "DELETE")
        if any(each.method == method for each in guarded)
    ]
    for headers in foreign:
        with httpx.Client(base_url=url, headers=headers, trust_env=False, verify=NO_TLS) as page:
            for endpoint in asked if headers is foreign[0] else asked[:2] + asked[-1:]:
                status, said = _asked(page, endpoint)
                assert status == 403, f"{headers} {endpoint.method} {endpoint.path} answered {status} {said}"
            if dialect == "cuby":
                assert page.get(POLL).status_code == 403, headers
    if dialect == "cuby":
        with (
            pytest.raises(InvalidStatus) as refused,
            connect(f"{url.replace('http', 'ws')}/socket.io/?EIO=4&transport=websocket",
                    origin=Origin("https://evil.example")),
        ):  # fmt: skip
            pass
        assert refused.value.response.status_code == 403
    else:
        assert httpx.get(url + POLL, trust_env=False).status_code == 404
    assert _asked(target.client(url=url), asked[0])[0] != 403
    evidence.append(f"{dialect}: {len(foreign)} kinds of pages, 403")


# Credentials for one dialect


@pytest.fixture(scope="module")
def scoped(target: Target) -> Iterator[dict[str, str]]:
    """A key for each dialect that has keys of its own, as strong as may be."""
    admin, name = target.client("admin"), f"scoped-{secrets.token_hex(3)}"
    token, cuby = secrets.token_urlsafe(24), str(uuid.uuid4())
    content = (
        f"global: {{api_enabled: true, api_auth: {token!r}}}\n"
        f"processes: {{{name}: {{enabled: true, initial_state: stopped, command: [sleep, '9']}}}}"
    )
    imported = admin.post("/api/apps/import/cbox", json={"content": content})
    assert imported.status_code == 202, imported.text
    stored = admin.post("/api/config/apikey", json={"apiKey": cuby, "role": "a"})
    assert stored.status_code == 200, stored.text
    yield {"cbox": token, "cuby": cuby}
    for key in admin.get("/api/keys", params={"all": "true"}).json()["keys"]:
        if key.get("scope"):
            assert admin.delete(f"/api/keys/{key['id']}").status_code == 204
    until(lambda: admin.delete(f"/api/apps/{name}").status_code in {202, 404}, "it can be removed")
    until(lambda: admin.get(f"/api/apps/{name}").status_code == 404, "it is gone")


@pytest.mark.proves("A16")
@pytest.mark.parametrize("scope", ["cbox", "cuby"])
def test_a_key_for_one_dialect_opens_no_other(
    target: Target, scoped: dict[str, str], scope: str, evidence: list[str]
) -> None:
    ways = {
        "bearer": target.client(Authorization=f"Bearer {scoped[scope]}"),
        "key": target.client(X_API_Key=scoped[scope]),
    }
    entered = target.client().post("/api/auth", json={"apiKey": scoped[scope]})
    if entered.status_code == 200:  # the session that it was traded for is no more than the key
        session = entered.cookies["auth_token"]
        ways["cookie"] = target.client(Cookie=f"auth_token={session}", Origin=target.url)
        ways["session"] = target.client(Authorization=f"Bearer {session}")
    refused = 0
    for way, client in ways.items():
        for group in groups():
            for endpoint in group.endpoints:
                if endpoint.role & OPEN or endpoint.method == "WS" or group.dialect.name == scope:
                    continue
                status, said = _asked(client, endpoint)
                spoken = f"{way} {endpoint.method} {endpoint.path} answered {status} {said}"
                assert status == 403, spoken
                assert scope in said or endpoint.method == "HEAD", spoken
                refused += 1
    own = {"cbox": "/api/v1/processes", "cuby": "/api/config"}[scope]
    assert {client.get(own).status_code for client in ways.values()} == {200}
    headers = {"Authorization": f"Bearer {scoped[scope]}"}
    with (
        pytest.raises(InvalidStatus),
        connect(f"ws://127.0.0.1:{target.web_port}/api/jobs/stream?jobId=x", additional_headers=headers),
    ):
        pass
    with connect(
        f"ws://127.0.0.1:{target.web_port}/socket.io/?EIO=4&transport=websocket", additional_headers=headers
    ) as ws:
        assert str(ws.recv(timeout=10)).startswith("0{")
        ws.send("40")
        assert str(ws.recv(timeout=10)).startswith('40{"sid"' if scope == "cuby" else "44{")
    evidence.append(f"a key for {scope}, by {len(ways)} ways: {refused} requests elsewhere, 403")
