"""`hostler apps`, against a server that answers as told: what it asks for, shows, and says to do next."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_server import Answer, Asked, FakeServer, completed, error, events, job, output

from cli import app_changes, apps
from cli.main import main

JOB = "job-00000000000000000001"
CHANGED = Answer(202, {"instanceId": "shop", "jobId": JOB, "status": "queued"})


def instance(index: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "id": f"web-{index}", "index": index, "state": "running", "pid": 4711 + index, "startedAt": None,
        "uptime": 125, "restartCount": 2, "exitCode": None, "signal": None, "cpuPercent": 1.25,
        "memoryBytes": 2_500_000, "memoryPercent": 0.1, "port": 8000 + index, "health": "healthy", "message": "",
        **more,
    }  # fmt: skip


def shown(**more: Any) -> dict[str, Any]:
    """Return an app as the API shows it: one that runs, unless told otherwise."""
    web = {
        "name": "web",
        "type": "longrun",
        "status": "running",
        "scale": 2,
        "instances": [instance(), instance(1)],
    }
    return {
        "instanceId": "shop", "name": "Shop", "status": "running", "desired": "running", "message": "", "error": "",
        "version": "1.2.0", "node": "n1", "nodeOnline": True, "releases": [{"version": "1.2.0"}], "configured": True,
        "autostart": True, "jobId": None, "installedAt": "2026-01-25T10:30:00Z", "processes": [web], **more,
    }  # fmt: skip


@pytest.fixture
def shop(server: FakeServer) -> FakeServer:
    """A server with one app, on which every job prints a line and completes."""
    server.on("GET /api/apps/shop", Answer(body=shown()))
    server.on(f"GET /api/jobs/{JOB}/log", events(output("[hostler] At it.\n"), completed()))
    server.on("GET /api/jobs/status", Answer(body={"job": job()}))
    return server


def test_installing_shows_the_log_and_says_what_has_become_of_the_app(
    shop: FakeServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shop.on("POST /api/apps", CHANGED)
    file = tmp_path / "config.json"
    file.write_text('{"port": 1, "name": "file"}')
    words = "apps install shop port=8080 greeting=hello --version 1.2.0 --node n1 --tag gpu --no-autostart"
    assert main([*words.split(), "--config-file", str(file)]) == 0
    asked = shop.last("/api/apps")
    assert asked.json == {
        "product": "shop", "version": "1.2.0", "node": "n1", "tags": ["gpu"], "start": True, "autostart": False,
        "config": {"port": 8080, "name": "file", "greeting": "hello"},
    }  # fmt: skip
    assert asked.headers["idempotency-key"]
    out, err = capsys.readouterr()
    assert out == "[hostler] At it.\n"
    assert "shop is installed; its status is running." in err


def test_what_runs_after_a_start_is_said_once(shop: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    shop.on("POST /api/apps/shop/start", CHANGED)
    assert main(["apps", "start", "shop"]) == 0
    assert "shop is running." in capsys.readouterr().err


def test_an_install_that_waits_for_its_configuration_names_what_is_missing(
    shop: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.on("POST /api/apps", CHANGED)
    shop.routes["GET /api/apps/shop"] = [Answer(body=shown(status="needs_config"))]
    schema = {"properties": {"key": {}, "url": {}}, "required": ["key"]}
    shop.on("GET /api/apps/shop/config", Answer(body={"config": {}, "schema": schema}))
    assert main(["apps", "install", "shop"]) == 0
    assert "hostler apps config shop key=…" in capsys.readouterr().err


def test_with_json_the_app_alone_is_on_stdout(shop: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    shop.on("POST /api/apps/shop/restart", CHANGED)
    assert main(["apps", "restart", "shop", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["instanceId"] == "shop"
    assert "At it." in err


def test_detached_the_job_s_id_is_printed_and_nothing_waited_for(
    shop: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.on("POST /api/apps/shop/stop", CHANGED)
    assert main(["apps", "stop", "shop", "--detach"]) == 0
    assert capsys.readouterr().out == f"{JOB}\n"
    assert [asked.path for asked in shop.asked] == ["/api/apps/shop/stop"]


@pytest.mark.parametrize(
    ("words", "path", "body"),
    [
        ("start shop", "start", {}),
        ("start shop --process web", "start", {"process": "web"}),
        ("stop shop", "stop", {}),
        ("restart shop -p web", "restart", {"process": "web"}),
        ("scale shop web=3 queue=0", "scale", {"scale": {"web": 3, "queue": 0}}),
        ("scale shop 4", "scale", {"scale": {"web": 4}}),
        ("update shop", "update", {}),
        ("update shop --version 2.0", "update", {"version": "2.0"}),
        ("rollback shop --version 1.1", "rollback", {"version": "1.1"}),
    ],
)
def test_each_change_asks_for_what_it_says(
    shop: FakeServer, words: str, path: str, body: dict[str, Any]
) -> None:
    shop.on(f"POST /api/apps/shop/{path}", CHANGED)
    assert main(["apps", *words.split()]) == 0
    assert shop.last(f"/api/apps/shop/{path}").json == body


def test_a_job_that_fails_says_why_and_where_to_look(
    shop: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.on("POST /api/apps/shop/start", CHANGED)
    ended = job(status="failed", reason="exit_code", exitCode=1, message="'web' ended with exit code 3.")
    shop.routes["GET /api/jobs/status"] = [Answer(body={"job": ended})]
    assert main(["apps", "start", "shop"]) == 1
    err = capsys.readouterr().err
    assert "'web' ended with exit code 3." in err
    assert "hostler apps logs shop" in err


@pytest.mark.parametrize(
    ("refusal", "hint"),
    [
        (error(404, "There is no app 'shop'."), "hostler apps list"),
        (
            error(409, "App 'shop' needs its configuration before it can start."),
            "hostler apps config shop KEY=VALUE",
        ),
        (error(409, "App 'shop' cannot start while it is updating."), "hostler apps show shop"),
        (error(401, "Authentication is required."), "hostler login"),
    ],
)
def test_a_refusal_names_the_command_that_helps(
    server: FakeServer, capsys: pytest.CaptureFixture[str], refusal: Answer, hint: str
) -> None:
    server.on("POST /api/apps/shop/start", refusal)
    assert main(["apps", "start", "shop"]) == 1
    assert f"Try: {hint}" in capsys.readouterr().err


def test_the_number_alone_is_for_apps_with_one_process(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    two = [{**shown()["processes"][0], "name": name} for name in ("web", "queue")]
    server.on("GET /api/apps/shop", Answer(body=shown(processes=two)))
    assert main(["apps", "scale", "shop", "3"]) == 1
    assert "hostler apps scale shop web=3" in capsys.readouterr().err
    assert main(["apps", "scale", "shop", "web=many"]) == 2


def test_apps_are_listed_and_shown(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.on(
        "GET /api/apps", Answer(body={"apps": [], "total": 0}), Answer(body={"apps": [shown()], "total": 1})
    )
    assert main(["apps", "list"]) == 0
    assert "hostler apps install PRODUCT" in capsys.readouterr().err
    assert main(["apps", "list"]) == 0
    listed = capsys.readouterr().out
    for word in ("shop", "running", "1.2.0", "n1", "web x2", "2 min 5 s"):
        assert word in listed
    server.on("GET /api/apps/shop", Answer(body=shown(nodeOnline=False, message="Its \x1b[2Jnode is away.")))
    assert main(["apps", "show", "shop"]) == 0
    out = capsys.readouterr().out
    for word in ("n1 (offline)", "web-1", "4712", "2.5 MB", "1.2 %", "healthy"):
        assert word in out
    assert "\x1b[2J" not in out


def lines(*texts: str, start: int = 1) -> Answer:
    found = [
        {"id": f"{number}-0", "timestamp": 1, "process": "web", "index": 0, "instance": "web-0",
         "stream": "stderr" if text.startswith("!") else "stdout", "level": "info", "text": text}
        for number, text in enumerate(texts, start)
    ]  # fmt: skip
    return Answer(body={"instanceId": "shop", "lines": found})


def test_logs_are_printed_by_instance_and_channel(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.on("GET /api/apps/shop/logs", lines("one", "!two"))
    assert main(["apps", "logs", "shop", "-n", "7", "--process", "web"]) == 0
    assert capsys.readouterr() == ("web-0 | one\n", "web-0 | !two\n")
    assert server.last("/api/apps/shop/logs").query == {"limit": "7", "process": "web"}
    assert main(["apps", "logs", "shop", "--json"]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["one", "!two"]


def test_logs_are_followed_from_the_last_line_on(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apps, "POLL_S", 0.0)
    asked: list[str | None] = []

    def ask(request: Asked) -> Answer:
        asked.append(request.query.get("after"))
        return {
            None: lines("one"),
            "1-0": lines("two", "three", start=2),
            "3-0": error(404, "There is no app 'shop'."),
        }[asked[-1]]

    server.on("GET /api/apps/shop/logs", ask)
    assert main(["apps", "logs", "-f", "shop"]) == 1
    out, err = capsys.readouterr()
    assert out == "web-0 | one\nweb-0 | two\nweb-0 | three\n"
    assert "There is no app 'shop'." in err
    assert asked == [None, "1-0", "3-0"]


def test_a_configuration_is_shown_and_changed_key_by_key(
    shop: FakeServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    schema = {"properties": {"key": {"description": "The key"}, "port": {}}, "required": ["key"]}
    known = {"config": {"key": "********", "port": 80}, "schema": schema, "configured": True}
    shop.on("GET /api/apps/shop/config", Answer(body=known))
    shop.on("PUT /api/apps/shop/config", CHANGED)
    assert main(["apps", "config", "shop"]) == 0
    out = capsys.readouterr().out
    assert "key *" in out
    assert "The key" in out
    assert main(["apps", "config", "shop", "port=81", "name=a=b"]) == 0
    assert shop.last("/api/apps/shop/config").json == {
        "config": {"key": "********", "port": 81, "name": "a=b"}
    }
    file = tmp_path / "c.json"
    file.write_text("[1]")
    assert main(["apps", "config", "shop", "--file", str(file)]) == 1
    file.write_text('{"key": "new"}')
    assert main(["apps", "config", "shop", "--file", str(file)]) == 0
    assert shop.last("/api/apps/shop/config").json == {"config": {"key": "new"}}
    assert main(["apps", "config", "shop", "=x"]) == 2


@pytest.mark.parametrize(("option", "query"), [([], {}), (["--keep-data"], {"keepData": "true"})])
def test_uninstalling_keeps_data_only_if_asked(
    shop: FakeServer, capsys: pytest.CaptureFixture[str], option: list[str], query: dict[str, str]
) -> None:
    shop.routes["GET /api/apps/shop"] = [Answer(body=shown()), error(404, "There is no app 'shop'.")]
    shop.on("DELETE /api/apps/shop", CHANGED)
    assert main(["apps", "uninstall", "shop", "--yes", *option]) == 0
    assert next(asked.query for asked in shop.asked if asked.method == "DELETE") == query
    assert "shop is gone." in capsys.readouterr().err


def test_an_import_shows_what_it_did_and_what_it_left_out(
    shop: FakeServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "cbox-init.yaml"
    file.write_text("processes: {}")
    done = [
        {"instanceId": "php-fpm", "action": "install", "node": "n1", "jobId": JOB},
        {"instanceId": "queue", "action": "unchanged", "node": "n1", "jobId": None},
    ]
    answer = {
        "processes": done,
        "api": {"enabled": True, "port": 9180, "keyId": "key-1"},
        "ignored": ["hooks"],
    }
    shop.on("POST /api/apps/import/cbox", Answer(202, answer))
    assert main(["apps", "import", str(file), "--node", "n1"]) == 0
    assert shop.last("/api/apps/import/cbox").json == {"content": "processes: {}", "tags": [], "node": "n1"}
    out, err = capsys.readouterr()
    assert "php-fpm" in out
    assert "Without a meaning here: hooks." in err
    assert "--listen cbox+auth=127.0.0.1:9180" in err
    shop.routes["GET /api/jobs/status"] = [Answer(body={"job": job(status="failed", reason="exit_code")})]
    assert main(["apps", "import", str(file)]) == 1
    assert "hostler apps show php-fpm" in capsys.readouterr().err


def test_what_an_app_lacks_is_no_reason_for_a_job_that_was_cancelled() -> None:
    shown = {"releases": [{}], "error": "An earlier install did not get well."}
    cancelled = app_changes._failure({"status": "cancelled", "jobId": "job-1"}, "shop", shown)
    assert str(cancelled) == "The job was cancelled."
    failed = app_changes._failure({"status": "failed", "jobId": "job-1"}, "shop", shown)
    assert str(failed) == "The job failed: An earlier install did not get well."
