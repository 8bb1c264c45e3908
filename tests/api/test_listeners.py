"""Ports of one dialect: what they serve, as whom, and that no web page drives them."""

from typing import Any

import httpx
import pytest
import redis
from machines import machine

from settings import BadSettings, Listener, Settings
from storage import api_keys, apps, manifests
from storage.identity import Identity

LISTEN = (
    "cbox=127.0.0.1:9180",
    "squareberg=127.0.0.1:9100",
    "cbox+auth=127.0.0.1:9181",
    "squareberg=0.0.0.0:9101",
)


@pytest.fixture
async def ports(settings_for: Any) -> Any:
    async with settings_for(listen=tuple(map(Listener.parse, LISTEN))) as hostler:
        yield hostler


def client(hostler: Any, base_url: str, **headers: str) -> httpx.AsyncClient:
    """Return a client of one port: httpx tells the application the port of the URL as the socket's."""
    found: httpx.AsyncClient = hostler.client(**headers)
    found.base_url = httpx.URL(base_url)
    return found


async def test_a_port_serves_its_own_dialect_alone(ports: Any) -> None:
    cbox, hub = client(ports, "http://127.0.0.1:9180"), client(ports, "http://127.0.0.1:9100")
    assert (await cbox.get("/api/v1/processes")).json() == {"processes": []}
    assert (await cbox.get("/api/v1/health")).json() == {"status": "healthy"}
    assert (await hub.get("/registry")).json() == []
    for port, paths in ((cbox, ("/registry", "/apps/x/")), (hub, ("/api/v1/processes", "/api/v1/health"))):
        for path in (
            *paths,
            "/api/jobs/list",
            "/api/users",
            "/api/apps",
            "/api/products",
            "/api/health",
            "/",
        ):
            answer = await port.get(path)
            assert (answer.status_code, answer.headers["X-Error-Code"]) == (404, "ROUTE_NOT_FOUND"), path
    assert (await cbox.get("/api/users")).json() == {"error": "not found"}
    assert set((await hub.get("/api/users")).json()) == {"detail", "error", "code"}


async def test_whoever_comes_by_an_open_port_is_an_operator_of_a_name(
    ports: Any, redis_client: redis.Redis
) -> None:
    node = await machine(ports.store)
    await apps.install(
        ports.store, "test", inline=manifests.load({"id": "web", "processes": {"web": {"command": "x"}}})
    )
    await node.carry_out()
    answer = await client(ports, "http://127.0.0.1:9180").post("/api/v1/processes/web/restart")
    assert (answer.status_code, answer.json()) == (202, {"message": "restart initiated", "process": "web"})
    _, last = redis_client.xrevrange("h:audit", count=1)[0]
    assert b'"listener:local"' in last[b"line"]


async def test_the_name_and_the_role_are_for_the_operator_to_choose(settings_for: Any) -> None:
    listen = (Listener.parse(LISTEN[0]),)
    async with settings_for(listen=listen, listen_role="viewer", listen_actor="kiosk") as hostler:
        cbox = client(hostler, "http://127.0.0.1:9180")
        assert (await cbox.get("/api/v1/processes")).status_code == 200
        assert (await cbox.post("/api/v1/processes/x/stop")).status_code == 403


async def test_the_main_port_asks_for_credentials_as_ever(ports: Any) -> None:
    main = client(ports, "http://127.0.0.1:8080", Host="127.0.0.1:9180")  # what a header says is no port
    assert (await main.get("/api/v1/processes")).status_code == 401
    assert (await main.get("/registry")).status_code == 401


@pytest.mark.parametrize("url", ["http://127.0.0.1:9181", "http://192.0.2.1:9101"])
async def test_a_port_that_is_to_ask_for_credentials_or_not_on_loopback_asks(ports: Any, url: str) -> None:
    path = "/registry" if url.endswith("1") and "9101" in url else "/api/v1/processes"
    assert (await client(ports, url).get(path)).status_code == 401
    viewer = await ports.user("r")
    token = viewer.headers["Authorization"]
    assert (await client(ports, url, Authorization=token).get(path)).status_code == 200


async def test_who_presents_credentials_at_an_open_port_is_held_to_them(ports: Any) -> None:
    viewer = (await ports.user("r")).headers["Authorization"]
    cbox = client(ports, "http://127.0.0.1:9180", Authorization=viewer)
    assert (await cbox.post("/api/v1/processes/x/stop")).status_code == 403
    wrong = client(ports, "http://127.0.0.1:9180", Authorization="Bearer nonsense")
    assert (await wrong.get("/api/v1/processes")).json() == {"error": "unauthorized"}
    neighbour = client(ports, "http://127.0.0.1:9180", Cookie="auth_token=of-another-server-on-this-machine")
    assert (await neighbour.get("/api/v1/processes")).status_code == 200


FOREIGN = [
    {"Host": "evil.example"}, {"Host": "evil.example:9180"}, {"Host": "127.0.0.1.evil.example:9180"},
    {"Host": "localhost.evil.example"}, {"Host": "192.0.2.1:9180"}, {"Host": "127.0.0.1:9180@evil.example"},
    {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "https://127.0.0.1:9180"},
    {"Origin": "http://localhost:3000"}, {"Origin": "http://127.0.0.1:9181"}, {"Origin": ""},
    {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Sec-Fetch-Site": "anything"},
    {"Host": "evil.example", "Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"},
]  # fmt: skip


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/api/v1/processes"), ("POST", "/api/v1/processes/web/stop")]
)
async def test_a_page_of_another_site_neither_reads_nor_changes(
    ports: Any, redis_client: redis.Redis, headers: dict[str, str], method: str, path: str
) -> None:
    before = redis_client.xlen("h:audit")
    answer = await client(ports, "http://127.0.0.1:9180").request(method, path, headers=headers)
    assert (answer.status_code, answer.headers["X-Error-Code"]) == (403, "DENIED")
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert redis_client.xlen("h:audit") == before


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"Host": "localhost:9180"}, {"Host": "LOCALHOST"}, {"Host": "[::1]:9180"}, {"Host": "127.0.0.2:9180"},
        {"Origin": "http://127.0.0.1:9180", "Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"},
        {"Host": "localhost:7000", "Origin": "http://localhost:7000"},
    ],
)  # fmt: skip
async def test_programs_and_the_ports_own_pages_are_served(ports: Any, headers: dict[str, str]) -> None:
    answer = await client(ports, "http://127.0.0.1:9180").get("/api/v1/processes", headers=headers)
    assert answer.status_code == 200


async def test_an_open_port_is_no_way_to_credentials(ports: Any) -> None:
    caller = Identity("listener", "local", "w", "local", "local")
    with pytest.raises(Exception, match="above your own role"):
        await api_keys.create(ports.store, caller, name="mine", role="r")
    for port in (9180, 9100):
        for path in ("/api/keys", "/api/auth/login", "/api/auth/setup", "/api/apps/import/cbox"):
            answer = await client(ports, f"http://127.0.0.1:{port}").post(path, json={})
            assert answer.status_code == 404


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("cbox=127.0.0.1:99999", "from 0 to 65535"),
        ("contextbay=127.0.0.1:1", "cbox"),
        ("cbox=127.0.0.1", "cbox"),
        ("cbox=nowhere:1", "nowhere"),
        ("cbox=127.0.0.1:0", "port 0"),
        ("cbox=127.0.0.1:9180,squareberg=127.0.0.1:9180", "taken twice"),
        ("cbox=127.0.0.1:8080", "taken twice"),
    ],
)
def test_ports_that_make_no_sense_are_refused_at_the_start(value: str, complaint: str) -> None:
    with pytest.raises(BadSettings, match=complaint):
        Settings.from_env({"HOSTLER_LISTEN": value})


def test_what_is_opened_is_announced_with_what_it_lets_in() -> None:
    settings = Settings.from_env({"HOSTLER_LISTEN": ",".join(LISTEN)})
    told = [settings.announcement(listener) for listener in settings.listen]
    assert "without credentials" in told[0]
    assert "listener:local, operator" in told[0]
    assert [("with credentials" in each) for each in told] == [False, False, True, True]
    assert [str(listener) for listener in settings.listen] == [*LISTEN]
    assert Settings.from_env({}).listen == ()


def test_ipv6_is_written_in_brackets() -> None:
    listener = Listener.parse("squareberg=[::1]:9100")
    assert (listener.host, listener.port, listener.asks, listener.address) == (
        "::1",
        9100,
        False,
        "[::1]:9100",
    )
