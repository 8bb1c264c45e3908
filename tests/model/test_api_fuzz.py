"""No request that the OpenAPI document describes, or nearly describes, is answered in a way that it does not."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import argon2
import httpx
import hypothesis
import pytest
from api_requests import Known, Made, Requests
from hypothesis import given
from hypothesis import strategies as st

from api.app import Api, create_app, groups
from api.dialect import of_path
from api.endpoint import Endpoint
from api.openapi import document
from settings import Settings
from storage import api_keys, sessions, users
from storage.admission import Presented, admit
from storage.passwords import Passwords
from storage.store import Store

ORIGIN = "http://hostler.test"
#: For how long something is followed that has no end.
FOLLOWED_S = 0.3
#: What the body of an error holds in each dialect, and (but in cbox's) perhaps details and when to come back.
ERROR_FIELDS = {
    "executor": {"error", "code", "message"},
    "contextbay": {"error", "code"},
    "contextbay rows": {"error", "code"},
    "cbox": {"error"},
    "squareberg": {"error", "code", "detail"},
    "cuby": {"error", "code"},
}


def check_response(endpoint: Endpoint, media: Any) -> None:
    """Hold an answer against the schema that its endpoint declares: nothing missing, nothing else in it."""
    assert endpoint.returns is not None
    known = {each.data_key or name for name, each in endpoint.returns.fields.items()}
    shown = {name: value for name, value in media.items() if name != "success" or name in known}
    assert endpoint.returns.validate(shown) == {}, shown


@dataclass
class Site:
    """The application without a server, one bearer of each role, and what answers have told."""

    app: Api
    store: Store
    has_objects: bool
    known: Known = field(default_factory=Known)
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)

    async def open(self) -> None:
        self.store.passwords.close()  # what a hash costs in production is not what is looked for
        self.store.passwords = Passwords(argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self.app), base_url=ORIGIN, timeout=20
        )
        self.inbox: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self.outbox: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}
        self.life = asyncio.ensure_future(self.app(scope, self.inbox.get, self.outbox.put))
        await self.inbox.put({"type": "lifespan.startup"})
        await self.outbox.get()
        await self._furnish()

    async def close(self) -> None:
        await self.client.aclose()
        await self.inbox.put({"type": "lifespan.shutdown"})
        await self.life

    async def _furnish(self) -> None:
        """A queued, a running and a finished job, so that there is something to ask about."""
        for name in ("one", "two", "three"):
            order = {"command": "true", "name": name, "tags": ["linux"] if name == "three" else []}
            answer = await self.client.post(
                "/api/jobs/submit", json=order, headers=await self.headers("operator")
            )
            self.known.learn(answer.json())
        worker = await self.headers("worker")
        for _ in range(2):
            job = await self.client.get("/api/jobs/get-job", headers=worker)
            assert job.status_code == 200, job.text
        result = {"jobId": job.json()["job"]["jobId"], "status": "completed", "exitCode": 0}
        answer = await self.client.post("/api/jobs/submit-result", json=result, headers=worker)
        assert answer.status_code == 200, answer.text

    async def headers(self, bearer: str) -> dict[str, str]:
        """Return the credentials of a role, made anew if need be."""
        if bearer not in self.secrets:
            self.secrets[bearer] = await self._enter(bearer)
        return self.secrets[bearer]

    async def _enter(self, bearer: str) -> dict[str, str]:
        if bearer in {"", "forged"}:
            return {"Authorization": "Bearer forged"} if bearer else {}
        if bearer == "worker":
            given = {"workerId": "worker-1", "hostname": "h", "tags": ["linux"]}
            operator = await self.headers("operator")
            await self.client.delete("/api/workers/worker-1", headers=await self.headers("admin"))
            answer = await self.client.post("/api/workers/register", json=given, headers=operator)
            self.known.learn(answer.json())
            return {"X-Worker-Token": answer.json().get("token", "none")}
        if bearer == "key":
            token = (await self.headers("operator"))["Authorization"].removeprefix("Bearer ")
            admission = await admit(self.store, Presented("bearer", token), "203.0.113.7", counted=False)
            if admission.identity is None:
                return {}
            _, secret = await api_keys.create(self.store, admission.identity, name="k", role="w")
            return {"X-API-Key": secret}
        name = self.store.new_id("u")[-12:]
        role: Any = {"admin": "a", "operator": "w", "viewer": "r"}[bearer]
        user = await users.create(
            self.store, actor="t", username=name, email=f"{name}@example.org", password="pass word", role=role
        )
        return {"Authorization": f"Bearer {await sessions.issue(self.store, user)}"}

    async def send(self, made: Made, operation: dict[str, Any]) -> None:
        """Send a request, and hold the answer against what is declared."""
        headers = {**made.headers, **await self.headers(made.bearer)}
        query = "&".join(f"{_quoted(name)}={_quoted(value)}" for name, value in made.query)
        url = httpx.URL(ORIGIN).copy_with(raw_path=f"{made.path}?{query}".encode())
        asking = self.client.request(made.method, url, headers=headers, content=made.body)
        try:
            async with asyncio.timeout(FOLLOWED_S if _streams(operation) else None):
                answer = await asking
        except TimeoutError:  # it was let in, and follows
            self.statuses[200] += 1
            return
        self.statuses[answer.status_code] += 1
        self.check(made, operation, answer)
        if (
            answer.is_success
            and answer.headers.get("content-type", "").startswith("application/json")
            and answer.content
        ):
            self.known.learn(answer.json())
        if answer.status_code == 401 or made.path in {"/api/auth/logout", "/api/auth/refresh"}:
            self.secrets.pop(made.bearer, None)  # it may have been taken away

    def check(self, made: Made, operation: dict[str, Any], answer: httpx.Response) -> None:
        status, code = answer.status_code, answer.headers.get("x-error-code", "")
        assert answer.headers["x-request-id"]
        declared = code == "NOT_CONFIGURED" and str(status) in operation["responses"]
        assert status < 500 or declared or (status == 503 and not self.has_objects), answer.text
        if status >= 400:
            if made.method == "HEAD":
                return
            body = answer.json()
            wanted = ERROR_FIELDS[of_path(made.path).name]
            assert (
                set(body) - ({"details", "furtherDetails", "retryAfter"} if "code" in wanted else set())
                == wanted
            ), body
            assert body.get("code", code) == code
            assert all(isinstance(body[name], str) and body[name] for name in wanted)
            assert "Traceback" not in answer.text
        elif status == 304:  # what HTTP itself answers to whoever holds it already
            assert "If-None-Match" in made.headers
            assert not answer.content
        elif status >= 200:
            assert str(status) in operation["responses"], f"{status} is not declared"
            content = operation["responses"][str(status)].get("content", {})
            kind = answer.headers.get("content-type", "").partition(";")[0]
            assert kind in content or "application/octet-stream" in content or not (kind or answer.content)


def _streams(operation: dict[str, Any]) -> bool:
    """Tell whether an answer has no end of its own."""
    return any("text/event-stream" in each.get("content", {}) for each in operation["responses"].values())


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="", errors="surrogatepass")


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@contextlib.contextmanager
def opened(runner: asyncio.Runner, settings: Settings) -> Iterator[Site]:
    async def start() -> Site:
        app = create_app(settings, check_response=check_response)
        site = Site(app, app.hub.store, not settings.s3_endpoint_url.endswith(":1"))
        await site.open()
        return site

    site = runner.run(start())
    try:
        yield site
    finally:
        runner.run(site.close())


def search_all(
    runner: asyncio.Runner, site: Site, search: hypothesis.settings, each: int, evidence: list[str]
) -> None:
    requests = Requests(document(groups()), site.known)

    @hypothesis.settings(search, max_examples=each)
    @given(st.data())
    def one(data: st.DataObject) -> None:
        made = requests.make(data.draw, *operation)
        hypothesis.note(str(made))
        runner.run(site.send(made, operation[2]))

    for operation in requests.operations():  # noqa: B007  what `one` looks for next
        one()
    told = ", ".join(f"{count} of {status}" for status, count in sorted(site.statuses.items()))
    evidence.append(f"{site.statuses.total()} requests to {len(requests.operations())} operations: {told}")


@pytest.mark.proves("F64")
def test_every_answer_is_a_declared_one(
    settings: Settings,
    runner: asyncio.Runner,
    search: hypothesis.settings,
    nightly: bool,
    evidence: list[str],
) -> None:
    nobody = replace(
        settings, s3_endpoint_url="http://127.0.0.1:1", s3_access_key_id="a", s3_secret_access_key="b"
    )
    with opened(runner, nobody) as site:
        search_all(runner, site, search, 100 if nightly else 5, evidence)


@pytest.mark.proves("F64")
def test_every_answer_is_a_declared_one_with_an_object_store(
    settings_with_s3: Settings,
    runner: asyncio.Runner,
    search: hypothesis.settings,
    nightly: bool,
    evidence: list[str],
) -> None:
    with opened(runner, settings_with_s3) as site:
        search_all(runner, site, search, 50 if nightly else 3, evidence)
