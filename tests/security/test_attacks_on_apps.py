"""Attacks on apps by somebody who may write to Redis: what a node runs is what was wished, or nothing."""

import secrets
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from probe import PROBE, argv_of_all, value_of
from target import ROOT, Target, until

#: What an app is told about itself; nothing else of Hostler's is in its environment.
ENVIRONMENT = {
    "APP", "INSTANCE", "INSTANCE_RECORD", "DATA_DIR", "CONFIG_FILE", "EVENTS_SOCKET", "IDENTITY_KEY", "SOCKET",
}  # fmt: skip


@pytest.fixture
def writer(target: Target) -> Iterator[Any]:
    """Somebody who may write to Redis, but holds no key."""
    with target.redis() as client:
        yield client


def running(seconds: int) -> bool:
    """Tell whether a process sleeps for so many seconds: each test has numbers of its own."""
    return bool(_sleepers(seconds))


def _sleepers(seconds: int) -> list[int]:
    wanted, found = [b"sleep", str(seconds).encode()], []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().split(b"\0")[:2] == wanted:
                found.append(int(process.name))
        except OSError:
            continue
    return found


def unique() -> int:
    return 100_000_000 + secrets.randbelow(100_000_000)


@pytest.fixture
def honest(target: Target) -> Iterator[tuple[str, int]]:
    """An app that runs on the target's node: its instance id, and for how long it sleeps."""
    seconds, name = unique(), f"honest-{secrets.token_hex(3)}"
    body = {"manifest": {"id": name, "processes": {"web": {"command": ["sleep", str(seconds)]}}}}
    operator = target.client("operator")
    answer = operator.post("/api/apps", json=body)
    assert answer.status_code == 202, answer.text
    until(lambda: operator.get(f"/api/apps/{name}").json()["status"] == "running", "it runs")
    assert running(seconds)
    yield name, seconds
    assert operator.delete(f"/api/apps/{name}").status_code == 202
    until(lambda: operator.get(f"/api/apps/{name}").status_code == 404, "it is gone")
    assert not running(seconds)


@pytest.mark.proves("A60")
def test_a_wish_that_is_altered_or_moved_starts_nothing(
    target: Target, writer: Any, honest: tuple[str, int], evidence: list[str]
) -> None:
    name, seconds = honest
    evil = unique()
    wish = writer.hget(f"h:app:{name}", "wish")
    altered = wish.replace(str(seconds).encode(), str(evil).encode())
    moved = f"moved-{secrets.token_hex(3)}"
    (node,) = {writer.hget(f"h:app:{name}", "node").decode()}
    try:
        for key, raw in (
            (name, altered),
            (name, b"\n" + altered.partition(b"\n")[2]),
            (name, b"\xff"),
            (moved, wish),
        ):
            writer.hset(
                f"h:app:{key}", mapping={"wish": raw, "node": node, "phase": "ready", "generation": 99}
            )
            writer.sadd(f"h:apps:node:{node}", key)
            writer.publish(f"h:control:{node}", "apps")
            time.sleep(0.5)
            assert not running(evil)
        until(lambda: "an app is not believed" in target.logged("worker"), "the node says so")
    finally:
        writer.delete(f"h:app:{moved}")
        writer.srem(f"h:apps:node:{node}", moved)
        writer.hset(f"h:app:{name}", "wish", wish)
        writer.publish(f"h:control:{node}", "apps")
    until(lambda: running(seconds), "what was wished runs")
    assert not running(evil)
    evidence.append("a wish altered, unsigned, unreadable, or moved to another app: nothing of it ran")


@pytest.mark.proves("A60")
def test_a_wish_of_before_that_is_put_back_is_refused(
    target: Target, writer: Any, honest: tuple[str, int], evidence: list[str]
) -> None:
    name, seconds = honest
    operator = target.client("operator")
    earlier = writer.hget(f"h:app:{name}", "wish")
    node = writer.hget(f"h:app:{name}", "node").decode()
    assert operator.post(f"/api/apps/{name}/stop", json={}).status_code == 202
    until(lambda: operator.get(f"/api/apps/{name}").json()["status"] == "stopped", "it has stopped")
    current = writer.hget(f"h:app:{name}", "wish")
    writer.hset(f"h:app:{name}", "wish", earlier)
    writer.publish(f"h:control:{node}", "apps")
    until(lambda: "an older wish was refused" in target.logged("worker"), "the node says so")
    assert not running(seconds)
    writer.hset(f"h:app:{name}", "wish", current)
    evidence.append("the wish from before a stop, put back: the app stays stopped")


@pytest.mark.proves("A60")
def test_a_job_of_an_app_that_hostler_did_not_sign_is_not_done(
    target: Target, writer: Any, honest: tuple[str, int], evidence: list[str]
) -> None:
    name, seconds = honest
    node = writer.hget(f"h:app:{name}", "node").decode()
    forged = "job-" + "".join(secrets.choice("0123456789abcdef") for _ in range(20))
    spec = f'{{"task":"app.uninstall","app":"{name}","action":"uninstall","generation":1}}'
    writer.hset(f"h:job:{forged}", mapping={
        "state": "queued", "attempt": "0", "queue": f"node.{node}", "spec": spec, "sig": "x", "created": "1",
        "timeout": "60", "wait": "", "retries": "0", "failures": "0", "deaths": "0", "actor": "user:u", "app": name,
    })  # fmt: skip
    writer.rpush(f"rq:queue:node.{node}", forged)
    writer.publish("h:wake", f"node.{node}")
    until(lambda: writer.hget(f"h:job:{forged}", "state") == b"failed", "it is refused")
    assert writer.hget(f"h:job:{forged}", "reason") == b"invalid"
    assert running(seconds)
    evidence.append("a forged uninstall in the node's queue: failed as invalid, the app runs on")


def _apps(target: Target) -> Path:
    return Path(target.env["HOSTLER_WORK_DIR"]) / "apps"


def _installed(target: Target, name: str, **manifest: Any) -> None:
    answer = target.client("operator").post("/api/apps", json={"manifest": {"id": name, **manifest}})
    assert answer.status_code == 202, answer.text


def _removed(target: Target, *names: str) -> None:
    operator = target.client("operator")

    def gone() -> bool:
        left = [name for name in names if operator.delete(f"/api/apps/{name}").status_code != 404]
        return not left

    until(gone, f"{names} are gone")


@pytest.mark.proves("A60")
def test_a_release_that_is_altered_or_moved_is_not_installed(
    target: Target, writer: Any, evidence: list[str]
) -> None:
    name, operator = f"released-{secrets.token_hex(3)}", target.client("operator")
    good, evil = unique(), unique()
    manifest = {"id": name, "version": "1.0.0", "processes": {"web": {"command": ["sleep", str(good)]}}}
    body = {
        "product": name,
        "source": {"kind": "npm", "package": f"none-{name}", "version": "1.0.0"},
        "manifest": manifest,
    }
    assert operator.post("/api/releases", json=body).status_code == 201
    record = f"h:release:{name}:1.0.0"
    genuine, moved = writer.get(record), f"{record[:-5]}2.0.0"
    assert genuine is not None
    try:
        for key, raw in (
            (record, genuine.replace(str(good).encode(), str(evil).encode())),
            (record, b"\n" + genuine.partition(b"\n")[2]),
            (record, b"\xff"),
            (moved, genuine),
        ):
            writer.set(key, raw)
            version = key.rpartition(":")[2]
            writer.zadd(f"h:releases:{name}", {version: 1})
            answer = operator.post("/api/apps", json={"product": name, "version": version})
            shown = operator.get(f"/api/releases/{name}/{version}")
            for refused in (answer, shown):
                assert refused.json()["code"] in {"FORGED_RECORD", "NOT_FOUND"}, refused.text
            assert operator.get("/api/releases").status_code == 200
            writer.set(record, genuine)
        assert not running(evil)
    finally:
        writer.delete(record, moved, f"h:releases:{name}")
        writer.zrem("h:products", name)
    evidence.append("a release altered, unsigned, unreadable, or moved to another version: not installed")


@pytest.mark.proves("A60")
def test_what_somebody_puts_before_a_nodes_relay_is_not_answered(
    target: Target, writer: Any, honest: tuple[str, int], evidence: list[str]
) -> None:
    name, _ = honest
    operator = target.client("operator")
    node = writer.hget(f"h:app:{name}", "node").decode()
    asked = [
        b"", b"x", b"\xff\xfe", b"0 ", b"00 {}", b"ab " + b"A" * 500, b"ab \xff" * 50, b"../../x y",
        b'ab {"app": "' + name.encode() + b'", "kind": "log"}',
    ]  # fmt: skip
    for entry in asked:
        ask_id = entry.partition(b" ")[0].decode("ascii", "replace")
        writer.set(f"h:relay:open:{ask_id}", "open", px=20_000)
        writer.rpush(f"h:relay:asks:{node}", entry)
        for message in (b"ask", b"", b"\xff", b"body ab", b"drop ab", entry):
            writer.publish(f"h:relay:asks:{node}", message)
    until(lambda: not writer.llen(f"h:relay:asks:{node}"), "the node has looked at all of it")
    for entry in asked:
        assert not writer.exists(f"h:relay:answer:{entry.partition(b' ')[0].decode('ascii', 'replace')}")
    logged = operator.get(f"/api/apps/{name}/logfile")
    assert logged.status_code == 200, logged.text  # what is asked by the book is answered
    evidence.append(
        f"{len(asked)} forged questions to a node's apps: none answered, and the next real one is"
    )


def _marketplace_key(admin: Any) -> str:
    """Return the id of the key that the marketplace's clients log in with."""
    keys = admin.get("/api/keys", params={"all": "true"}).json()["keys"]
    return str(next(key["id"] for key in keys if key.get("scope") == "cuby"))


@pytest.mark.proves("A53")
def test_no_secret_of_an_app_turns_up_where_others_look(target: Target, evidence: list[str]) -> None:
    name, seconds = f"secretive-{secrets.token_hex(3)}", unique()
    canary = {
        what: f"CANARY{what}{secrets.token_hex(8)}" for what in ("env", "config", "install", "refused")
    } | {"marketplace": str(uuid.uuid4())}
    process = {"command": ["sleep", str(seconds)], "env": {"TOKEN": canary["env"]}}
    schema = {
        "type": "object", "required": ["token"],
        "properties": {"token": {"type": "string", "writeOnly": True}, "count": {"type": "integer"}},
    }  # fmt: skip
    _installed(target, name, processes={"web": process}, config=schema)
    admin, operator, viewer = (target.client(who) for who in ("admin", "operator", "viewer"))
    until(lambda: viewer.get(f"/api/apps/{name}").json()["status"] == "needs_config", "it waits")
    given = {"token": canary["config"], "count": 1}
    until(
        lambda: operator.put(f"/api/apps/{name}/config", json={"config": given}).is_success,
        "it is configured",
    )
    until(lambda: operator.post(f"/api/apps/{name}/start", json={}).is_success, "it may start")
    until(lambda: running(seconds), "it runs")
    refused = operator.put(
        f"/api/apps/{name}/config", json={"config": {"token": canary["refused"], "count": "x"}}
    )
    assert refused.status_code in {400, 422}
    bad = {"id": name, "processes": {"web": {**process, "scale": canary["install"]}}}
    assert operator.post(f"/api/apps/{name}/update", json={"manifest": bad}).status_code in {400, 409, 422}
    stored = admin.post("/api/config/apikey", json={"apiKey": canary["marketplace"], "role": "r"})
    assert stored.status_code == 200
    once = operator.post("/api/auth/token").json()["token"]
    spent = operator.post("/api/auth/token").json()["token"]
    session = target.client().post("/api/auth/session", json={"token": spent})
    assert session.status_code == 200
    (pid,) = _sleepers(seconds)
    environ = dict(
        word.split(b"=", 1) for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if b"=" in word
    )
    assert environ[b"TOKEN"].decode() == canary["env"]  # what looks below would be found
    canary |= {
        "one-time token": once, "spent token": spent, "session": session.cookies["auth_token"],
        "identity key": environ[b"HOSTLER_IDENTITY_KEY"].decode(),
    }  # fmt: skip
    places = {"argv": argv_of_all(), "logs": target.all_logs(), "refused": refused.text}
    for path in (
        "/api/apps", f"/api/apps/{name}", f"/api/apps/{name}/config", f"/api/apps/{name}/logs",
        f"/api/apps/{name}/logfile", f"/api/apps/{name}/runs", "/api/v1/processes", f"/api/v1/processes/{name}",
        "/api/products/status", f"/api/products/{name}/config", "/api/config", "/api/marketplace/apikey", "/registry",
        f"/registry/{name}", "/api/jobs/list?limit=1000", "/api/keys", "/api/workers/list",
    ):  # fmt: skip
        places[path] = viewer.get(path).text
    # (who may change an app is shown its environment, as cbox-init's clients have it from its configuration)
    for path in ("/api/keys?all=true", "/api/config", f"/api/apps/{name}/config"):
        places[f"an admin's {path}"] = admin.get(path).text
    with target.redis() as client:
        for key in client.scan_iter(count=1000):
            places[f"Redis {key!r}"] = f"{key!r} {value_of(client, key)!r}"
    try:
        for what, secret in canary.items():
            found = [place for place, text in places.items() if secret in text]
            assert not found, f"{what} is in {found}"
    finally:
        assert admin.delete(f"/api/keys/{_marketplace_key(admin)}").status_code == 204
        _removed(target, name)
    left = [str(path) for path in _apps(target).rglob(f"*{name}*")]
    assert not left, left
    evidence.append(f"{len(canary)} secrets of an app and of its users absent from {len(places)} places")


@pytest.mark.proves("A61")
def test_an_app_reaches_neither_the_service_nor_other_apps_nor_jobs(
    target: Target, evidence: list[str]
) -> None:
    other, prober, seconds = f"kept-{secrets.token_hex(3)}", f"prober-{secrets.token_hex(3)}", unique()
    keeping = f'echo TOP-SECRET > "$HOSTLER_DATA_DIR/secret"; exec sleep {seconds}'
    _installed(
        target, other, processes={"web": {"command": ["sh", "-c", keeping], "env": {"S": "TOP-SECRET"}}}
    )
    secret = f"secret-{seconds}"
    job = target.submit(f"echo TOP-SECRET > {secret}; while [ ! -e stop ]; do sleep 0.1; done", timeout=120)
    kept = _apps(target) / other
    until(lambda: (kept / "data" / "secret").exists() and running(seconds), "the other app runs")
    work = Path(target.env["HOSTLER_WORK_DIR"])
    (hidden,) = until(lambda: list(work.glob(f"*/*/{secret}")), "the job runs")
    (pid,) = _sleepers(seconds)
    keeper = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    pids = [keeper, str(pid)] + [
        str(each) for one in ("web", "scheduler", "worker", "redis") for each in target.pids(one)[:2]
    ]
    env = {
        "PIDS": " ".join(pids), "OTHER": str(kept / "data"), "CODE": str(ROOT),
        "SECRET": str(kept / "state.json"), "JOB": str(hidden.parent), "HIDDEN": str(hidden),
        "PLACES": " ".join(str(each) for each in (kept, *kept.rglob("*")) if not each.is_socket()),
    }  # fmt: skip
    script = PROBE + (
        'try "job" cat "$HIDDEN"; try "list of the job" ls "$JOB"; try "write into the job" touch "$JOB/x"\n'
        'see() { if [ -d "$1" ]; then ls "$1"; else cat "$1"; fi; }\n'
        'for place in $PLACES; do try "see $place" see "$place"; try "write $place" touch "$place" "$place/x"; done\n'
        'own=$(dirname "$HOSTLER_DATA_DIR"); for place in records state.json logs config current.json x; do\n'
        '  try "write own $place" sh -c \'echo x >> "$1" || echo x > "$1/x"\' x "$own/$place"\n'
        "done\n"
        'see "$HOSTLER_CONFIG_FILE" >/dev/null && echo "its own is read"\n'
        "env | cut -d= -f1 | tr '\\n' ' '; echo; echo probed; exec sleep 60"
    )
    try:
        _installed(target, prober, processes={"web": {"command": ["sh", "-c", script], "env": env}})
        viewer = target.client("viewer")

        def told() -> str:
            return viewer.get(f"/api/apps/{prober}/logfile?lines=1000").text

        until(lambda: "probed" in told(), "it has probed")
        lines = told().splitlines()
        assert "TOP-SECRET" not in "".join(lines)
        assert "its own is read" in lines  # so what is shut is not shut by a mistake here
        assert len([line for line in lines if line.startswith("shut")]) > 40
        open_doors = [line for line in lines if line.startswith("OPEN")]
        assert open_doors == [], open_doors
        names = next(line for line in lines if " HOSTLER_APP " in f" {line} ").split()
        assert not [each for each in names if each.startswith(("REDIS", "S3_", "AWS_", "HOSTLER_"))
                    and each.removeprefix("HOSTLER_") not in ENVIRONMENT]  # fmt: skip
    finally:
        target.client("operator").post("/api/jobs/cancel", json={"jobId": job})
        target.finished(job)
        _removed(target, prober, other)
    evidence.append(f"an app: {len(lines) - 2} doors of the service, of another app, and of a job: shut")
