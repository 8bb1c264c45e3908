"""What holds for every endpoint there is."""

import csv
import inspect
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from api import openapi
from api.app import create_app, groups
from api.dialect import CBOX, CONTEXTBAY_ROWS, EXECUTOR, SQUAREBERG, of_path
from api.endpoint import OPEN, ROLES_OF, Endpoint, HTTPStatus, Role
from settings import Settings
from storage import sessions, users
from storage.store import Store

CONTRACT = Path(__file__).parent / "contract" / "endpoints.tsv"
SHARED = Path(__file__).parents[2] / "shared" / "contract" / "endpoints.tsv"

ENDPOINTS = [endpoint for group in groups() for endpoint in group.endpoints]
HTTP = [endpoint for endpoint in ENDPOINTS if endpoint.method != "WS"]
GUARDED = [endpoint for endpoint in HTTP if not endpoint.role & OPEN]

#: What the contract's letters ask for; a row's endpoint may admit workers besides.
CONTRACT_ROLE = {
    "public": Role.PUBLIC,
    "self": Role.SELF,
    "enroll": Role.ENROLL,
    "r": Role.VIEWER,
    "w": Role.OPERATOR,
    "a": Role.ADMIN,
    "worker": Role.WORKER,
}


def named(endpoint: Any) -> str:
    return f"{endpoint.method} {endpoint.path}" if isinstance(endpoint, Endpoint) else str(endpoint)


def each(endpoints: list[Endpoint]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("endpoint", endpoints, ids=named)


#: The systems whose contract is fulfilled; the tables have more.
SYSTEMS = {"cmd-executor", "cbox", "cuby", "squareberg"}
#: What is no endpoint: Socket.IO is an application of its own (api/realtime/socketio).
MOUNTED = {"/socket.io/"}
#: Dialects that write the names of fields with underscores.
UNDERSCORES = {CBOX, CONTEXTBAY_ROWS, SQUAREBERG}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        found = csv.DictReader(file, delimiter="\t")
        return [row for row in found if row["system"] in SYSTEMS and row["path"] not in MOUNTED]


def shape(path: str) -> str:
    return re.sub(r"{[^}]+}", "{}", path)


@pytest.mark.parametrize("row", rows(CONTRACT), ids=lambda row: f"{row['method']} {row['path']}")
def test_every_row_of_the_contract_is_declared_with_its_role(row: dict[str, str]) -> None:
    declared = {(endpoint.method, shape(endpoint.path)): endpoint for endpoint in ENDPOINTS}
    endpoint = declared[row["method"], shape(row["path"])]
    assert endpoint.role & ~Role.WORKER == CONTRACT_ROLE[row["role"]] & ~Role.WORKER or (
        row["role"] == "worker" and endpoint.role == Role.WORKER
    )


def test_the_copy_of_the_contract_is_the_contract() -> None:
    if not SHARED.exists():
        pytest.skip("the contract tables lie outside of this repository and are not here")
    assert rows(CONTRACT) == rows(SHARED)


@each(ENDPOINTS)
def test_every_endpoint_says_what_it_does_and_what_it_answers(endpoint: Endpoint) -> None:
    documented = inspect.getdoc(endpoint.handler) or ""
    assert documented.partition("\n")[0].endswith((".", "?"))
    assert endpoint.role
    assert (
        endpoint.method == "WS"
        or endpoint.returns is not None
        or endpoint.media_type
        or (endpoint.status is HTTPStatus.NO_CONTENT)
    )


def test_operation_ids_are_distinct_and_every_path_is_described() -> None:
    document = openapi.document(groups())
    operations = [each for path in document["paths"].values() for each in path.values()]
    assert len({each["operationId"] for each in operations}) == len(operations) == len(HTTP)
    for endpoint in HTTP:
        operation = document["paths"][openapi.path_of(endpoint)][endpoint.method.lower()]
        assert operation["summary"]
        assert str(endpoint.status.value) in operation["responses"]
        assert operation["x-role"] == openapi.name_of(endpoint.role)
    assert set(document["x-websockets"]) == {each.path for each in ENDPOINTS if each.method == "WS"}


@each([endpoint for endpoint in ENDPOINTS if endpoint.returns is not None])
def test_the_fields_of_an_answer_are_written_as_clients_read_them(endpoint: Endpoint) -> None:
    assert endpoint.returns is not None
    of_contextbay = endpoint.handler.__module__.startswith(
        "api.contextbay."
    )  # beside older rows of its dialect
    underscores = of_contextbay or endpoint.group.dialect in UNDERSCORES
    spelling = r"[a-z][a-z0-9_]*" if underscores else r"[a-z][A-Za-z0-9]*"
    for name, field in endpoint.returns.fields.items():
        assert re.fullmatch(spelling, field.data_key or name), name


@each([endpoint for endpoint in HTTP if endpoint.group.dialect in {EXECUTOR, CBOX, SQUAREBERG}])
def test_an_unknown_path_beside_an_endpoint_is_answered_in_its_dialect(endpoint: Endpoint) -> None:
    assert of_path(shape(endpoint.path).replace("{}", "x")) is endpoint.group.dialect


class Everybody:
    """Clients of every kind, on the whole API."""

    def __init__(self, app: Any) -> None:
        self.transport = httpx.ASGITransport(app=app)
        self.headers: dict[str, dict[str, str]] = {"nobody": {}}

    async def call(self, who: str, endpoint: Endpoint, **how: Any) -> httpx.Response:
        path = re.sub(r"{[^}]+}", "contract-probe", endpoint.path)
        async with httpx.AsyncClient(transport=self.transport, base_url="http://hostler.test") as client:
            headers = {**self.headers[who], **how.pop("headers", {})}
            return await client.request(endpoint.method, path, headers=headers, **how)


@pytest.fixture
async def everybody(settings: Settings) -> AsyncIterator[Everybody]:
    app, store = create_app(settings), Store(settings)
    everybody = Everybody(app)
    for role in ("r", "w", "a"):
        user = await users.create(
            store, actor="t", username=f"user-{role}", email=f"{role}@x.org", password="pass word", role=role
        )  # type: ignore[arg-type]
        everybody.headers[role] = {"Authorization": f"Bearer {await sessions.issue(store, user)}"}
    await store.wire.call(_registered())
    token = await sessions.issue_worker_token(store, "probe-worker", "r1")
    everybody.headers["worker"] = {"X-Worker-Token": token}
    yield everybody
    await store.close()
    for middleware in app._unprepared_middleware:
        await middleware.process_shutdown({}, {})


def _registered() -> Any:
    from storage import fleet
    from storage.attempts import Holder

    return fleet.register(Holder("probe-worker", "r1"), {"kind": "agent"}, silent_s=30)


async def test_nobody_gets_past_a_guarded_endpoint(everybody: Everybody) -> None:
    for endpoint in GUARDED:
        for how in ({}, {"headers": {"Authorization": "Bearer x"}}, {"headers": {"X-Worker-Token": "x"}}):
            answer = await everybody.call("nobody", endpoint, **how)
            assert answer.status_code == 401, named(endpoint)
            if endpoint.method != "HEAD":
                assert answer.json()["error"], named(endpoint)
            assert answer.headers["X-Error-Code"] == "UNAUTHENTICATED"


async def test_everybody_is_held_to_the_role_that_is_declared(
    everybody: Everybody, redis_client: redis.Redis
) -> None:
    before = redis_client.xlen("h:events"), redis_client.xlen("h:audit")
    for endpoint in GUARDED:
        for who in ("r", "w", "a", "worker"):
            if ROLES_OF[who] & endpoint.role:
                continue
            # Roles are judged before the body, whatever it is.
            answer = await everybody.call(who, endpoint, content=b"{")
            assert answer.status_code == 403, (named(endpoint), who)
    assert (redis_client.xlen("h:events"), redis_client.xlen("h:audit")) == before


#: Bodies that no endpoint can make sense of.
NONSENSE: list[tuple[dict[str, Any], set[int]]] = [
    ({"json": []}, {400}),
    ({"json": "text"}, {400}),
    ({"content": b"{", "headers": {"Content-Type": "application/json"}}, {400}),
    ({"content": b'{"a": "\xff"}', "headers": {"Content-Type": "application/json"}}, {400}),
    ({"content": b"a=b", "headers": {"Content-Type": "application/x-www-form-urlencoded"}}, {415}),
    ({"content": b"x" * (16 * 1024 * 1024 + 1), "headers": {"Content-Type": "application/json"}}, {413}),
]


def _who_may(endpoint: Endpoint) -> str:
    return "worker" if endpoint.role == Role.WORKER else "a"


async def test_bodies_without_sense_are_refused_and_change_nothing(
    everybody: Everybody, redis_client: redis.Redis
) -> None:
    takers = [endpoint for endpoint in HTTP if endpoint.body is not None]
    assert len(takers) >= 10
    before = redis_client.xlen("h:events"), redis_client.xlen("h:audit"), redis_client.exists("h:jobs")
    for endpoint in takers:
        for how, refused_as in NONSENSE:
            answer = await everybody.call(_who_may(endpoint), endpoint, **how)
            # where no body is of a wrong type, one of another type is one without sense
            senseless = endpoint.group.dialect.any_type and refused_as == {415}
            expected = {400} if senseless else refused_as
            assert answer.status_code in expected, (named(endpoint), how, answer.text)
            told = answer.json()
            assert told["error"]
            assert "Traceback" not in answer.text
            if endpoint.group.dialect is EXECUTOR:
                assert {"error", "message", "code"} <= set(told)
    after = redis_client.xlen("h:events"), redis_client.xlen("h:audit"), redis_client.exists("h:jobs")
    assert after == before


async def test_unknown_fields_are_refused_but_from_agents(everybody: Everybody) -> None:
    for endpoint in HTTP:
        if endpoint.body is None:
            continue
        answer = await everybody.call(
            _who_may(endpoint), endpoint, json={"no_such_field": 1, "email": "a@b.c"}
        )
        named_it = "no_such_field" in answer.text
        if endpoint.group.dialect is CBOX:  # which has one phrase for all bodies
            named_it = (answer.status_code, answer.json()) == (400, {"error": "invalid request body"})
        assert named_it == (endpoint.body.unknown == "raise"), named(endpoint)
        if endpoint.body.unknown != "raise":
            assert endpoint.role & (Role.WORKER | Role.ENROLL), named(endpoint)


async def test_unknown_query_parameters_are_refused_but_from_agents(everybody: Everybody) -> None:
    for endpoint in HTTP:
        if endpoint.query is None or endpoint.role == Role.WORKER or endpoint.group.dialect is CBOX:
            continue  # cbox-init passes over what it does not know
        answer = await everybody.call(_who_may(endpoint), endpoint, params={"no_such_parameter": "1"})
        assert answer.status_code == 400, named(endpoint)


async def test_an_id_that_nothing_has_is_not_found(everybody: Everybody) -> None:
    for endpoint in HTTP:
        if "{" in endpoint.path and endpoint.method in {"GET", "DELETE"} and endpoint.query is None:
            answer = await everybody.call("a", endpoint)
            assert answer.status_code in {404, 403}, named(endpoint)
            assert answer.headers["X-Error-Code"] != "ROUTE_NOT_FOUND"


async def test_a_path_that_is_not_there_is_told_apart_from_a_thing_that_is_not(everybody: Everybody) -> None:
    async with httpx.AsyncClient(transport=everybody.transport, base_url="http://hostler.test") as client:
        answer = await client.get("/api/jobs/no/such/path/at/all")
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (404, "ROUTE_NOT_FOUND")
        assert answer.json()["error"] == "Not found"
        answer = await client.delete("/api/jobs/submit")
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (405, "METHOD_NOT_ALLOWED")


def test_the_generated_pages_are_up_to_date() -> None:
    assert openapi.main(["--check"]) == 0
