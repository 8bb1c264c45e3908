"""`hostler backup`: how backup jobs and records are found, and what is asked for."""

import json
from typing import Any

import pytest
from fake_server import Answer, FakeServer

from cli.main import main

ID, RECORD = "backup-" + "0" * 20, "job-" + "1" * 20


def listed(*names: str) -> Answer:
    jobs = [{"id": ID.replace("0", str(number)), "name": name} for number, name in enumerate(names)]
    return Answer(body={"backup_jobs": jobs, "has_more": False})


def accepted(method: str, server: FakeServer, path: str, **body: Any) -> None:
    server.routes[f"{method} {path}"] = [Answer(body={"job_id": RECORD, **body})]


@pytest.mark.parametrize("wanted", ["backup-of-the-shop", "nightly"])
def test_a_backup_is_found_by_its_name_whatever_that_is(server: FakeServer, wanted: str) -> None:
    server.routes["GET /api/backup-jobs"] = [listed(wanted, "other")]
    accepted("POST", server, f"/api/backup-jobs/{ID}/run")
    assert main(["backup", "run", wanted, "--detach"]) == 0


def test_a_name_that_two_have_is_refused(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.routes["GET /api/backup-jobs"] = [listed("shop", "shop")]
    assert main(["backup", "run", "shop", "--detach"]) != 0
    assert "2 backup jobs are called 'shop'" in capsys.readouterr().err


def test_the_newest_good_record_is_what_is_restored(server: FakeServer) -> None:
    path = f"/api/backup-jobs/{ID}"
    server.routes[f"GET {path}"] = [Answer(body={"id": ID, "name": "shop"})]
    records = [
        {"id": "job-" + "3" * 20, "status": "failed"},
        {"id": "job-" + "2" * 20, "status": "corrupt"},
        {"id": RECORD, "status": "completed"},
    ]
    server.routes[f"GET {path}/records"] = [Answer(body={"records": records})]
    accepted("POST", server, f"{path}/records/{RECORD}/restore")
    assert main(["backup", "restore", ID, "--to", "/srv/x", "--include", "/a", "--detach"]) == 0
    said = json.loads(server.asked[-1].body)
    assert said == {"dry_run": False, "include": ["/a"], "target": "/srv/x"}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (["--timeout", "600", "--misfire", "skip"], {"timeout_s": 600, "misfire": "skip"}),
        (["--cron", "", "--tag", "", "--limit-rate", "0"], {"schedule": None, "tags": [], "bandwidth_limit": None}),
        (["--post", "sync"], {"hooks": {"pre": "stop", "post": "sync"}}),
        (["--pre", ""], {"hooks": {"pre": None, "post": None}}),
        (["--max-age", "7"], {"drill": {"schedule": "0 5 * * 0", "command": None, "sample": 1.0, "max_age_days": 7.0}}),
        (["--no-drill"], {"drill": None}),
        (["--daily", "3", "--disable"], {"retention": {"daily": 3}, "enabled": False}),
        (["--source", "/srv", "--source", '{"type": "redis"}'], {"volumes": ["/srv", {"type": "redis"}]}),
    ],
)  # fmt: skip
def test_an_update_changes_what_is_given_alone(server: FakeServer, given: list[str], sent: Any) -> None:
    drill = {
        "schedule": "0 5 * * 0",
        "command": None,
        "sample": 1.0,
        "max_age_days": 35.0,
        "next_at": "2027-01-01T05:00:00Z",
    }
    now = {"id": ID, "name": "shop", "hooks": {"pre": "stop", "post": None}, "drill": drill}
    server.routes[f"GET /api/backup-jobs/{ID}"] = [Answer(body=now)]
    server.routes[f"PUT /api/backup-jobs/{ID}"] = [Answer(body=now)]
    assert main(["backup", "update", ID, *given]) == 0
    assert json.loads(server.asked[-1].body) == sent


def test_an_update_of_nothing_asks_for_nothing(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.routes[f"GET /api/backup-jobs/{ID}"] = [Answer(body={"id": ID, "name": "shop"})]
    assert main(["backup", "update", ID]) != 0
    assert "Nothing to change" in capsys.readouterr().err
    assert [each.method for each in server.asked] == ["GET"]
