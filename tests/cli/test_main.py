"""The commands, against a server that answers as told: what they ask for, print, and exit with."""

import getpass
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fake_server import Answer, Asked, FakeServer, completed, error, events, job, output

from cli import main as module
from cli import reference
from cli.main import main
from settings import __version__

JOB = "job-00000000000000000001"
SUBMITTED = Answer(
    201, {"jobId": JOB, "status": "queued", "createdAt": "2026-01-25T10:30:00Z", "estimatedWaitTime": None}
)


@pytest.fixture
def ends(server: FakeServer) -> FakeServer:
    """A server on which a submitted job prints two lines and completes."""
    server.on("POST /api/jobs/submit", SUBMITTED)
    started = ("started", {"workerId": "worker-1", "attempt": 1})
    server.on(
        f"GET /api/jobs/{JOB}/log", events(started, output("out\n"), output("err\n", "stderr"), completed())
    )
    server.on("GET /api/jobs/status", Answer(body={"job": job()}))
    return server


def test_submit_prints_the_id_alone(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.on("POST /api/jobs/submit", SUBMITTED)
    assert main(["submit", "make test"]) == 0
    assert capsys.readouterr() == (f"{JOB}\n", "")
    asked = server.last("/api/jobs/submit")
    assert asked.json == {"command": "make test"}
    assert asked.headers["idempotency-key"]
    assert asked.headers["x-api-key"] == "cb_test-key"


def test_submit_passes_every_option_on(server: FakeServer) -> None:
    server.on("POST /api/jobs/submit", SUBMITTED)
    words = (
        "submit --timeout 60 --priority high --tag gpu --tag linux --env A=1 --env B=x=y --artifact reports/** "
        "--name nightly --retries 2 --delay 1.5 --after job-1 --key deploy --once --webhook https://e.example/x "
        "--cwd sub --idempotency-key mine run"
    )
    assert main(words.split()) == 0
    asked = server.last("/api/jobs/submit")
    assert asked.headers["idempotency-key"] == "mine"
    assert asked.json == {
        "command": "run", "timeout": 60, "priority": "high", "tags": ["gpu", "linux"], "env": {"A": "1", "B": "x=y"},
        "artifacts": ["reports/**"], "name": "nightly", "retries": 2, "delay": 1.5, "dependsOn": ["job-1"],
        "concurrencyKey": "deploy", "atMostOnce": True, "webhook": {"url": "https://e.example/x"},
        "workingDirectory": "sub",
    }  # fmt: skip


def test_submit_of_a_schedule(server: FakeServer) -> None:
    server.on("POST /api/jobs/submit", SUBMITTED)
    assert main(["submit", "backup", "--cron", "0 3 * * *", "--timezone", "Europe/Paris"]) == 0
    assert server.last("/api/jobs/submit").json["schedule"] == {
        "cron": "0 3 * * *",
        "timezone": "Europe/Paris",
    }


def test_a_batch_is_submitted_a_thousand_at_a_time_with_the_options_for_whoever_says_nothing_else(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Asked] = []

    def accept(request: Asked) -> Answer:
        asked.append(request)
        count = len(request.json["jobs"])
        return Answer(201, {"jobIds": [f"job-{len(asked)}-{n}" for n in range(count)], "total": count})

    server.on("POST /api/jobs/submit-batch", accept)
    lines = ['{"command": "a", "timeout": 9}', "", *['{"argv": ["b"]}'] * 1000]
    path = tmp_path / "jobs.jsonl"
    path.write_text("\n".join(lines))
    assert main(["submit", "--batch", str(path), "--timeout", "5", "--idempotency-key", "mine"]) == 0
    assert asked[0].json["jobs"][:2] == [{"command": "a", "timeout": 9}, {"argv": ["b"], "timeout": 5}]
    assert [len(each.json["jobs"]) for each in asked] == [1000, 1]
    assert [each.headers["idempotency-key"] for each in asked] == ["mine", "mine.1"]
    assert capsys.readouterr().out.splitlines()[-2:] == ["job-1-999", "job-2-0"]


def test_what_is_wrong_with_jobs_of_a_batch_is_said_of_their_lines(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {
        "error": "Invalid request",
        "message": "jobs[0].command: is missing",
        "details": {"jobs[0].command": "is missing", "jobs[1]": "is odd", "jobs[999].x": "is nowhere"},
    }
    server.on("POST /api/jobs/submit-batch", Answer(400, said))
    path = tmp_path / "jobs.jsonl"
    path.write_text('\n\n{"name": "a"}\n\n{"command": "b"}\n')
    assert main(["submit", "--batch", str(path)]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "line 3, command: is missing" in told
    assert "line 5: is odd" in told
    assert "jobs[999].x: is nowhere" in told


@pytest.mark.parametrize("text", ["", '{"command": "a"}\n["b"]', '{"command": '])
def test_a_batch_that_is_no_file_of_json_objects_submits_nothing(
    server: FakeServer, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text(text)
    assert main(["submit", "--batch", str(path)]) == 2
    assert main(["submit", "a", "--batch", str(path)]) == 2
    assert not server.asked


def test_words_after_two_dashes_are_run_without_a_shell(server: FakeServer) -> None:
    server.on("POST /api/jobs/submit", SUBMITTED)
    assert main(["submit", "--timeout", "5", "--", "python3", "-c", "print(1)", "--json"]) == 0
    assert server.last("/api/jobs/submit").json == {
        "argv": ["python3", "-c", "print(1)", "--json"],
        "timeout": 5,
    }


@pytest.mark.parametrize(
    "words",
    [
        ["submit"],
        ["submit", "--"],
        ["submit", "npm", "test"],
        ["submit", "a", "--", "b"],
        ["submit", "a", "--env", "=x"],
        ["submit", "a", "--file", "/does/not/exist"],
        ["submit", "a", "--timezone", "UTC"],
        ["submit", "a", "--cron", "* * * * *", "--follow"],
        ["submit", "a", "--no-such-option"],
        ["no-such-command"],
    ],
)
def test_what_makes_no_sense_is_a_usage_error_and_asks_nothing_of_the_server(
    words: list[str], server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err
    assert server.asked == []


def test_an_unquoted_command_is_told_how_to_quote_itself(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "npm", "test"]) == 2
    assert "'npm test'" in capsys.readouterr().err


def test_following_shows_each_channel_where_it_belongs_and_sums_up(
    ends: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "make test", "--follow"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "out\n"
    assert "err\n" in shown.err
    assert "Running on worker-1." in shown.err
    assert f"Job {JOB} completed, exit code 0, waited 2 s, ran 10 s, on worker-1." in shown.err


def test_following_with_json_prints_one_object_on_stdout(
    ends: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "make test", "--follow", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == job()
    assert "out\n" in shown.err


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        ({"status": "completed", "exitCode": 0}, 0),
        ({"status": "completed", "exitCode": None}, 0),
        ({"status": "failed", "reason": "exit_code", "exitCode": 7}, 7),
        ({"status": "failed", "reason": "timeout", "exitCode": 143}, 124),
        ({"status": "cancelled", "reason": None, "exitCode": None}, 130),
        ({"status": "failed", "reason": "lost", "exitCode": None}, 125),
        ({"status": "failed", "reason": "integrity", "exitCode": 0}, 125),
        ({"status": "failed", "reason": "invalid", "exitCode": None}, 125),
        ({"status": "failed", "reason": "invalid", "exitCode": None, "command": None, "argv": None}, 1),
        ({"status": "completed", "reason": None, "exitCode": None, "command": None, "argv": None}, 0),
    ],
)
def test_the_exit_code_is_the_jobs(ended: dict[str, object], code: int, server: FakeServer) -> None:
    server.on(f"GET /api/jobs/{JOB}/log", events(completed(str(ended["status"]))))
    server.on("GET /api/jobs/status", Answer(body={"job": job(**ended)}))
    assert main(["jobs", "log", "-f", JOB]) == code


def test_who_follows_a_job_that_does_not_start_is_told_why(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def why(_asked: Asked) -> Answer:
        asked.set()
        return Answer(
            body={"jobId": JOB, "reasons": [{"code": "no_workers", "message": "No worker is online."}]}
        )

    def log(_asked: Asked) -> Answer:
        asked.wait(10)
        return events(completed("cancelled", None))

    monkeypatch.setattr("cli.following.EXPLAIN_AFTER_S", 0.01)
    server.on(f"GET /api/jobs/{JOB}/why", why)
    server.on(f"GET /api/jobs/{JOB}/log", log)
    server.on("GET /api/jobs/status", Answer(body={"job": job(status="cancelled", exitCode=None)}))
    assert main(["jobs", "log", "-f", JOB]) == 130
    assert "Waiting: No worker is online." in capsys.readouterr().err


def test_a_lost_connection_repeats_nothing_of_the_log(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.on(
        f"GET /api/jobs/{JOB}/log", events(output("one\n")), events(output("two\n"), completed(), start=2)
    )
    server.on("GET /api/jobs/status", Answer(body={"job": job()}))
    assert main(["jobs", "log", "-f", JOB]) == 0
    shown = capsys.readouterr()
    assert shown.out == "one\ntwo\n"
    assert "connection was lost" in shown.err
    assert [each.headers.get("last-event-id") for each in server.asked if each.path.endswith("/log")] == [
        None,
        "1",
    ]


def test_a_folder_is_packed_uploaded_and_named_in_the_job(
    ends: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "a.txt").write_text("hello")
    ends.on("POST /api/files/upload", Answer(201, {"fileId": "file-1", "url": "/uploads/file-1/project.zip"}))
    assert main(["submit", "make test", "--file", str(project), "--follow"]) == 0
    upload = ends.last("/api/files/upload")
    assert b'filename="project.zip"' in upload.body
    assert b"a.txt" in upload.body
    assert ends.last("/api/jobs/submit").json["fileUrl"] == "/uploads/file-1/project.zip"
    assert "Packed 1 file, 5 B" in capsys.readouterr().err


def test_a_file_is_uploaded_as_it_is(server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "project.tar.gz"
    path.write_bytes(b"any bytes")
    server.on("POST /api/files/upload", Answer(201, {"fileId": "file-1", "url": "/u"}))
    server.on("POST /api/jobs/submit", SUBMITTED)
    assert main(["submit", "ls", "-F", str(path)]) == 0
    assert b'filename="project.tar.gz"' in server.last("/api/files/upload").body
    assert b"any bytes" in server.last("/api/files/upload").body


def artifact(name: str) -> dict[str, object]:
    return {"name": name, "size": 5, "url": f"/api/jobs/{JOB}/artifacts/{name}"}


def artifacts(*names: str) -> Answer:
    return Answer(body={"jobId": JOB, "artifacts": [artifact(name) for name in names], "total": len(names)})


def test_artifacts_are_downloaded_at_the_end(ends: FakeServer, tmp_path: Path) -> None:
    ends.on(f"GET /api/jobs/{JOB}/artifacts", artifacts("reports/sum.txt"))
    ends.on(f"GET /api/jobs/{JOB}/artifacts/reports/sum.txt", Answer(body=b"fine\n"))
    assert main(["submit", "make test", "--download", str(tmp_path / "got")]) == 0
    assert (tmp_path / "got/reports/sum.txt").read_bytes() == b"fine\n"


@pytest.mark.parametrize(
    "name", ["../out.txt", "/etc/out.txt", "a/../../out.txt", "C:\\out.txt", "a\\..\\b", ""]
)
def test_an_artifact_is_never_saved_outside(
    name: str, server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.on(f"GET /api/jobs/{JOB}/artifacts", artifacts(name))
    assert main(["jobs", "artifacts", JOB, "--download", str(tmp_path / "got")]) == 1
    assert "leads out" in capsys.readouterr().err
    assert not any(each.path.startswith(f"/api/jobs/{JOB}/artifacts/") for each in server.asked)


def test_an_artifact_is_not_saved_through_a_link_that_leads_out(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "got").mkdir()
    (tmp_path / "got/reports").symlink_to(tmp_path)
    server.on(f"GET /api/jobs/{JOB}/artifacts", artifacts("reports/x.txt"))
    assert main(["jobs", "artifacts", JOB, "--download", str(tmp_path / "got")]) == 1
    assert not (tmp_path / "x.txt").exists()


def test_one_artifact_is_printed_or_those_that_there_are_named(
    server: FakeServer, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    server.on(f"GET /api/jobs/{JOB}/artifacts", artifacts("reports/sum.txt"))
    server.on(f"GET /api/jobs/{JOB}/artifacts/reports/sum.txt", Answer(body=b"\x00raw\xff"))
    assert main(["jobs", "artifacts", JOB, "reports/sum.txt"]) == 0
    assert capfdbinary.readouterr().out == b"\x00raw\xff"
    assert main(["jobs", "artifacts", JOB, "other.txt"]) == 1
    assert b"it left reports/sum.txt" in capfdbinary.readouterr().err


def test_jobs_are_listed_for_people_programs_and_scripts(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    page = {
        "jobs": [job(command="echo \x1b[2J[red]hi")],
        "total": 1,
        "limit": 20,
        "offset": 0,
        "hasMore": False,
    }
    server.on("GET /api/jobs/list", Answer(body=page))
    assert main(["jobs", "list", "--status", "completed"]) == 0
    shown = capsys.readouterr().out
    assert server.last("/api/jobs/list").query["status"] == "completed"
    assert JOB in shown
    assert "echo [red]hi" in shown
    assert "\x1b" not in shown
    assert main(["jobs", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == page
    assert main(["jobs", "list", "-q"]) == 0
    assert capsys.readouterr().out == f"{JOB}\n"


def test_a_job_is_shown_with_its_durations(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.on("GET /api/jobs/status", Answer(body={"job": job(progress=45)}))
    assert main(["jobs", "show", JOB]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    facts = {words[0]: words[1].strip() for words in lines if len(words) == 2}
    assert facts["ran"] == "10 s"
    assert facts["waited"] == "2 s"
    assert facts["progress"] == "45 %"


def test_a_log_is_read_page_by_page_and_gaps_are_told(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def page(*lines: tuple[int, str, str], following: int, more: bool, gap: object = None) -> Answer:
        shown = [{"seq": seq, "attempt": 1, "stream": stream, "text": text} for seq, stream, text in lines]
        return Answer(
            body={
                "jobId": JOB,
                "lines": shown,
                "next": following,
                "gap": gap,
                "status": "completed",
                "more": more,
            }
        )

    def answer(asked: Asked) -> Answer:
        if asked.query["after"] == "0":
            return page(following=4, more=True, gap={"from": 1, "to": 4})
        if asked.query["after"] == "4":
            return page((5, "stdout", "a"), (6, "stderr", "b"), following=6, more=True)
        return page((7, "stdout", "c"), following=7, more=False)

    server.on(f"GET /api/jobs/{JOB}/log", answer)
    assert main(["jobs", "log", JOB]) == 0
    shown = capsys.readouterr()
    assert shown.out == "a\nc\n"
    assert "lines 1 to 4 are not kept" in shown.err
    assert "b\n" in shown.err
    assert main(["jobs", "log", JOB, "--json"]) == 0
    assert [line["seq"] for line in json.loads(capsys.readouterr().out)["lines"]] == [5, 6, 7]


def test_cancel_retry_and_why(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.on(
        "POST /api/jobs/cancel",
        Answer(body={"jobId": JOB, "status": "cancelled", "message": "Job cancelled"}),
    )
    server.on(f"POST /api/jobs/{JOB}/retry", Answer(201, {"jobId": "job-2", "status": "queued"}))
    reason = {"code": "no_workers", "message": "No worker is online."}
    server.on(
        f"GET /api/jobs/{JOB}/why", Answer(body={"jobId": JOB, "status": "queued", "reasons": [reason]})
    )
    assert main(["jobs", "cancel", JOB]) == 0
    assert server.last("/api/jobs/cancel").json == {"jobId": JOB}
    assert capsys.readouterr().out == f"Job {JOB} is cancelled.\n"
    assert main(["jobs", "retry", JOB]) == 0
    assert capsys.readouterr().out == "job-2\n"
    assert main(["jobs", "why", JOB]) == 0
    assert capsys.readouterr().out == "No worker is online.\n"


def test_files_go_up_and_come_down(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("hello")
    file = {
        "fileId": "file-1", "filename": "a.txt", "size": 5, "url": "/u", "uploadedAt": "2026-01-25T10:30:00Z",
        "expiresAt": "2026-02-25T10:30:00Z",
    }  # fmt: skip
    server.on("POST /api/files/upload", Answer(201, file))
    server.on("GET /api/files/file-1", Answer(body=file))
    server.on("GET /api/files/download/file-1", Answer(body=b"hello"))
    server.on("GET /api/files/list", Answer(body={"files": [file], "total": 1}))
    server.on("DELETE /api/files/file-1", Answer(body={"fileId": "file-1", "deleted": True}))
    assert main(["files", "up", str(path)]) == 0
    assert capsys.readouterr().out == "file-1\n"
    (tmp_path / "got").mkdir()
    assert main(["files", "down", "file-1", "-o", str(tmp_path / "got")]) == 0
    assert (tmp_path / "got/a.txt").read_text() == "hello"
    assert main(["files", "ls"]) == 0
    assert "a.txt" in capsys.readouterr().out
    assert main(["files", "rm", "file-1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["deleted"] is True


def test_a_failed_download_leaves_no_file_behind(server: FakeServer, tmp_path: Path) -> None:
    assert main(["files", "down", "file-1", "-o", str(tmp_path / "x")]) == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != "config"] == []


def test_a_failure_is_one_sentence_and_a_hint_on_stderr(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.on("GET /api/jobs/status", error(401, "The credentials are not valid, or no \x1b[2Jlonger."))
    assert main(["jobs", "show", JOB, "--json"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    first, second = shown.err.splitlines()
    assert first == "hostler: The credentials are not valid, or no longer."
    assert second.startswith("Try: hostler login --url ")


def test_login_asks_for_the_password_and_saves_the_session(
    fake: FakeServer, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session = {
        "token": "ey.j.w",
        "user": {"id": "u", "email": "ada@example.com", "username": "ada", "role": "admin"},
    }
    fake.on("POST /api/auth/login", Answer(body=session))
    fake.on("GET /api/jobs/list", Answer(body={"jobs": [], "total": 0, "hasMore": False}))
    fake.on("POST /api/auth/logout", Answer(body={"message": "Logged out successfully"}))
    monkeypatch.setattr("sys.stdin", io.StringIO("correct horse\n"))
    assert main(["login", "--url", fake.url, "--email", "ada@example.com", "--password-stdin"]) == 0
    assert fake.last("/api/auth/login").json == {"email": "ada@example.com", "password": "correct horse"}
    assert "ey.j.w" not in str(capsys.readouterr())
    assert main(["jobs", "list"]) == 0
    assert fake.last("/api/jobs/list").headers["authorization"] == "Bearer ey.j.w"
    assert main(["logout"]) == 0
    assert fake.last("/api/auth/logout").headers["authorization"] == "Bearer ey.j.w"
    assert main(["jobs", "list"]) == 1


def test_a_password_is_never_asked_for_where_nobody_could_type_it(
    fake: FakeServer, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("secret\n"))
    monkeypatch.setattr(getpass, "getpass", lambda *_: pytest.fail("asked"))
    assert main(["login", "--url", fake.url, "--email", "ada"]) == 1
    assert "--password-stdin" in capsys.readouterr().err
    assert fake.asked == []


@pytest.mark.parametrize("command", ["login", "setup"])
def test_without_a_terminal_nothing_is_asked_and_the_option_to_give_is_named(
    fake: FakeServer, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:  # fmt: skip
    monkeypatch.delenv("HOSTLER_URL", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO("https://elsewhere.example\nada\n"))
    fake.on("GET /api/auth/setup", Answer(body={"needed": True}))
    for arguments, missing, option in (
        ([], "address of the server", "--url"),
        (["--url", fake.url], "email", "--email"),
    ):
        assert main([command, *arguments]) == 1
        first, hint = capsys.readouterr().err.splitlines()
        assert first == f"hostler: There is no terminal to ask for the {missing} on."
        assert hint.startswith(f"Try: the same with {option} ")


def test_login_with_what_hostler_up_keeps(fake: FakeServer, config: Path, tmp_path: Path) -> None:
    admin = {"url": fake.url, "email": "admin@localhost", "password": "p", "apiKey": "cb_admin"}
    (tmp_path / "admin.json").write_text(json.dumps(admin))
    fake.on("GET /api/auth/me", Answer(body={"email": "admin@localhost", "roleName": "admin"}))
    assert main(["login", "--data", str(tmp_path)]) == 0
    assert fake.last("/api/auth/me").headers["x-api-key"] == "cb_admin"
    assert json.loads(config.read_text())["contexts"]["default"]["secret"] == "cb_admin"


def test_login_without_a_folder_of_up_says_what_to_run(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["login", "--data", str(tmp_path / "none")]) == 1
    assert f"Try: hostler up --data {tmp_path / 'none'}" in capsys.readouterr().err


def test_the_version_and_the_description_of_the_api(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.on("GET /api/openapi.json", Answer(body={"openapi": "3.1.0"}))
    for words, shown in (
        (["version"], f"{__version__}\n"),
        (["--version"], f"{__version__}\n"),
        (["version", "--json"], '{\n  "version": "%s"\n}\n' % __version__),  # noqa: UP031  braces are JSON's here
        (["openapi"], '{\n  "openapi": "3.1.0"\n}\n'),
    ):
        assert main(words) == 0
        assert capsys.readouterr().out == shown


def test_processes_become_the_modules_that_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, words: became.append([path, *words]))
    python = [sys.executable, sys.executable, "-P", "-m"]
    for words, module_and_options in (
        (["worker"], ["workers"]),
        (
            ["worker", "--slots", "3", "--tags", "a,b", "--name", "w"],
            ["workers", "--slots", "3", "--tags", "a,b", "--name", "w"],
        ),
        (["scheduler"], ["scheduler"]),
        (
            ["agent", "--ephemeral", "--ca-file", "x.pem"],
            ["workers.agent", "--ca-file", "x.pem", "--ephemeral"],
        ),
        (
            ["agent", "--url", "https://h", "--slots", "1"],
            ["workers.agent", "--url", "https://h", "--slots", "1"],
        ),
    ):
        main(words)
        assert became.pop() == python + module_and_options


def test_up_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr("cli.up.up", lambda **options: given.update(options) or 3)
    listen = ["cbox=127.0.0.1:9180", "cuby=127.0.0.1:3847"]
    command = ["up", "--port", "0", "--data", str(tmp_path), "--workers", "2"]
    assert main([*command, *(word for port in listen for word in ("--listen", port))]) == 3
    environ = given.pop("environ")
    assert given == {
        "port": 0, "data": tmp_path, "workers": 2, "host": "127.0.0.1", "listen": listen, "keep_apps": False
    }  # fmt: skip
    assert environ == dict(os.environ)  # noqa: TID251  what it shall be


def test_every_command_has_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    for entry in reference.commands():
        assert entry.text, entry.words
        assert main([*entry.words.split()[1:], "--help"]) == 0
        assert f"Usage: {entry.words}" in " ".join(capsys.readouterr().out.split())


def test_the_list_of_commands_says_of_groups_what_they_say_of_themselves() -> None:
    texts = {entry.words: entry.text for entry in reference.commands() if entry.is_group}
    rows = {f"hostler {row.name}": row.help for row in module.COMMANDS if not row.single}
    assert {"hostler": texts["hostler"], **rows} == texts


def test_a_command_imports_nothing_that_only_others_need() -> None:
    program = (
        "import sys\nfrom cli.main import main\ncode = main(['--help'])\n"
        "sys.exit(code or ', '.join({'httpx', 'cli.client', 'cli.apps', 'boto3', 'falcon'} & set(sys.modules)) or 0)"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert (ended.returncode, ended.stderr) == (0, "")
