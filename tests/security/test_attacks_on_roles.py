"""Attacks on authorisation: who may call what, and whose things they may touch."""

import re
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from target import PASSWORD, Target
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from api.app import groups
from api.endpoint import ROLES_OF, Endpoint, Role

EVERYBODY = {"nobody": None, "viewer": "r", "operator": "w", "admin": "a", "agent": "worker"}


def endpoints() -> Iterator[Endpoint]:
    for group in groups():
        yield from group.endpoints


def _status(target: Target, endpoint: Endpoint, who: str) -> int:
    path = re.sub(r"{[^}]+}", "no-such-thing", endpoint.path)
    known = None if who == "nobody" else who
    if endpoint.method == "WS":
        client = target.client(known)
        headers = {name: value for name, value in client.headers.items() if name.startswith("x-")}
        try:
            with connect(f"ws://127.0.0.1:{target.web_port}{path}", additional_headers=headers):
                return 101
        except InvalidStatus as refused:
            return refused.response.status_code
    body: dict[str, Any] = {"json": {}} if endpoint.method in {"POST", "PUT", "PATCH"} else {}
    with target.client(known).stream(endpoint.method, path, **body) as answer:
        if answer.status_code != 403:  # what is let in may stream without end
            return answer.status_code
        if endpoint.method == "HEAD":  # it says nothing of its reason
            return _status(target, replace(endpoint, method="GET"), who)
        return 403 if b"role" in answer.read() else 404


@pytest.mark.proves("A15")
@pytest.mark.parametrize("who", EVERYBODY)
def test_every_endpoint_admits_the_roles_it_declares_and_no_others(
    target: Target, who: str, evidence: list[str]
) -> None:
    letter = EVERYBODY[who]
    asked = 0
    for endpoint in endpoints():
        status = _status(target, endpoint, who)
        asked += 1
        spoken = f"{who} {endpoint.method} {endpoint.path} answered {status}"
        if endpoint.role & (Role.PUBLIC | Role.SELF | Role.ENROLL):
            assert status != 403, spoken
        elif letter is None:
            assert status == (403 if endpoint.method == "WS" else 401), spoken
        elif ROLES_OF[letter] & endpoint.role:
            assert status not in {401, 403}, spoken
        else:
            assert status == 403, spoken
    evidence.append(f"{who}: {asked} endpoints")


@pytest.mark.proves("A15")
def test_no_route_is_served_that_no_declaration_names(target: Target) -> None:
    for path in (
        "/api/debug",
        "/api/admin",
        "/metrics/../settings",
        "/.env",
        "/api/settings",
        "/api/auth/../users",
        "//api/users",
    ):
        answer = target.client("viewer").get(path)
        assert answer.status_code in {400, 403, 404}, path
    assert target.client("admin").request("TRACE", "/api/auth/me").status_code in {400, 404, 405}


@pytest.mark.proves("A16")
def test_the_keys_of_another_user_are_neither_seen_nor_revoked(target: Target, evidence: list[str]) -> None:
    mine = target.client("operator").post("/api/keys", json={"name": "mine", "role": "r"}).json()
    viewer = target.client("viewer")
    assert viewer.delete(f"/api/keys/{mine['id']}").status_code == 404
    assert mine["id"] not in viewer.get("/api/keys").text
    assert viewer.get("/api/keys", params={"all": "true"}).status_code == 403
    assert target.client("operator").get("/api/keys", params={"all": "true"}).status_code == 403
    still = target.client(X_API_Key=mine["key"]).get("/api/auth/me")
    assert still.status_code == 200
    assert target.client("operator").delete(f"/api/keys/{mine['id']}").status_code == 204
    assert target.client(X_API_Key=mine["key"]).get("/api/auth/me").status_code == 401
    evidence.append("404 for another's key, which still works")


@pytest.mark.proves("A16")
def test_ending_ones_own_session_ends_nobody_elses(target: Target) -> None:
    one, another = (target.login("viewer")["token"] for _ in range(2))
    assert target.client(Authorization=f"Bearer {one}").post("/api/auth/logout").status_code == 200
    assert target.client(Authorization=f"Bearer {one}").get("/api/auth/me").status_code == 401
    assert target.client(Authorization=f"Bearer {another}").get("/api/auth/me").status_code == 200


@pytest.mark.proves("A16", "A20")
def test_a_scoped_key_reaches_no_further_than_its_role(target: Target, evidence: list[str]) -> None:
    scoped = target.client("admin").post("/api/keys", json={"name": "scoped", "role": "r"}).json()["key"]
    client = target.client(X_API_Key=scoped)
    assert client.get("/api/auth/me").json()["role"] == "r"
    assert client.get("/api/users").status_code == 403
    assert client.post("/api/jobs/submit", json={"command": "true"}).status_code == 403
    assert client.post("/api/keys", json={"name": "more", "role": "w"}).status_code == 403
    assert client.get("/api/keys", params={"all": "true"}).status_code == 403
    evidence.append("an admin's key of role r reads, and makes no key above r")


CHANGES: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/api/users", {"username": "m", "email": "m@example.org", "password": PASSWORD}),
    ("PUT", "/api/users/{viewer}", {"email": "viewer@example.org"}),
    ("POST", "/api/keys", {"name": "m"}),
    ("POST", "/api/jobs/submit", {"command": "true"}),
    ("POST", "/jobs/create", {"command": "true"}),
    ("POST", "/api/files/presign", {"filename": "m", "size": 1}),
    ("POST", "/api/auth/setup", {"username": "m", "email": "m@example.org", "password": PASSWORD}),
]
SMUGGLED = (
    "is_admin", "owner", "owner_id", "id", "created_at", "createdAt", "state", "status", "lease", "attempt", "actor",
    "submittedBy", "generation", "password_hash", "sig", "spec", "queue", "userId", "__class__", "file", "task",
)  # fmt: skip


@pytest.mark.proves("A17")
@pytest.mark.parametrize(("method", "path", "body"), CHANGES, ids=[f"{m} {p}" for m, p, _ in CHANGES])
def test_a_field_that_is_not_declared_is_refused_by_name(
    target: Target, method: str, path: str, body: dict[str, Any], evidence: list[str]
) -> None:
    admin = target.client("admin")
    path = path.format(**target.users)
    for name in SMUGGLED:
        answer = admin.request(method, path, json={**body, name: "a"})
        assert answer.status_code == 400, f"{name}: {answer.status_code} {answer.text}"
        assert name in answer.text
    evidence.append(f"{method} {path.split('/')[-1][:12]}: {len(SMUGGLED)} names refused")


@pytest.mark.proves("A19")
def test_a_worker_is_no_user_and_a_user_no_worker(target: Target) -> None:
    agent = target.client("agent")
    for path in ("/api/users", "/api/jobs/list", "/api/keys", "/api/auth/me", "/api/workers/list"):
        assert agent.get(path).status_code == 403, path
    assert agent.post("/api/jobs/submit", json={"command": "true"}).status_code == 403
    assert target.client("admin").get("/api/jobs/get-job").status_code == 403
    # the token in another header, or as a cookie, is no more than that
    token = target.workers["agent"]
    assert target.client(Authorization=f"Bearer {token}").get("/api/auth/me").status_code == 403
    assert target.client(X_API_Key=token).get("/api/auth/me").status_code == 401
    assert target.client(Cookie=f"auth_token={token}").get("/api/auth/me").status_code == 401
    session = target.login("admin")["token"]
    assert target.client(X_Worker_Token=session).get("/api/jobs/get-job").status_code == 401


@pytest.mark.proves("A19")
def test_an_agent_does_not_speak_for_another_nor_for_its_jobs(target: Target, evidence: list[str]) -> None:
    target.enroll("mallory")
    target.enroll("alice", tags=["alice"])
    job_id = target.submit("true", tags=["alice"])
    alice, mallory = target.client("alice"), target.client("mallory")
    assert mallory.get("/api/jobs/get-job", params={"workerId": "alice"}).status_code == 403
    assert mallory.post("/api/workers/heartbeat", json={"workerId": "alice"}).status_code == 403
    assert mallory.delete("/api/workers/alice").status_code == 403
    assert mallory.get("/api/jobs/get-job").status_code == 204
    assert alice.get("/api/jobs/get-job").json()["job"]["jobId"] == job_id
    theft: list[httpx.Response] = [
        mallory.post("/api/jobs/submit-result", json={"jobId": job_id, "workerId": "alice", "exitCode": 0}),
        mallory.post("/api/jobs/submit-result", json={"jobId": job_id, "exitCode": 0}),
        mallory.post("/api/jobs/stream-output", json={"jobId": job_id, "data": "x\n", "type": "stdout"}),
        mallory.put(f"/api/jobs/{job_id}/artifacts/x", content=b"x"),
        mallory.post(f"/api/jobs/{job_id}/log?first=0&next=1", content=b"1 0 1 o 2\nx\n"),
    ]
    assert [answer.status_code for answer in theft] == [403, 409, 409, 409, 409]
    assert alice.post("/api/jobs/submit-result", json={"jobId": job_id, "exitCode": 0}).status_code == 200
    job = target.finished(job_id)
    assert (job["status"], job["stdout"]) == ("completed", "")
    evidence.append("another agent's claim, heartbeat, result, output, artifact, log: 403 or 409")


@pytest.mark.proves("A19")
def test_an_agent_reads_the_files_of_its_own_jobs_alone(target: Target) -> None:
    file = target.upload("secret.txt", b"for somebody else")
    answer = target.client("agent").get(f"/api/files/download/{file['fileId']}")
    assert answer.status_code == 403
    assert target.client("agent").get(file["url"]).status_code == 403


@pytest.mark.proves("A20")
def test_the_last_admin_stays_and_an_operator_makes_no_admin(target: Target, evidence: list[str]) -> None:
    admin, operator = target.client("admin"), target.client("operator")
    assert operator.post("/api/keys", json={"name": "up", "role": "a"}).status_code == 403
    assert operator.put(f"/api/users/{target.users['operator']}", json={"role": "a"}).status_code == 403
    assert admin.delete(f"/api/users/{target.users['admin']}").status_code == 409
    assert admin.put(f"/api/users/{target.users['admin']}", json={"role": "r"}).status_code == 409
    evidence.append("403 and 409; a key's role falls with its owner's")


@pytest.mark.proves("A20")
def test_a_keys_role_falls_with_its_owners(target: Target) -> None:
    user_id, key = target.add_user(f"falling-{uuid.uuid4().hex[:8]}", "w")
    client = target.client(X_API_Key=key)
    assert client.get("/api/auth/me").json()["role"] == "w"
    assert target.client("admin").put(f"/api/users/{user_id}", json={"role": "r"}).status_code == 200
    assert client.get("/api/auth/me").json()["role"] == "r"
    assert client.post("/api/jobs/submit", json={"command": "true"}).status_code == 403
    assert target.client("admin").delete(f"/api/users/{user_id}").status_code == 204
    assert client.get("/api/auth/me").status_code == 401
