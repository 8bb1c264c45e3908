"""Ctrl+C while a job is followed: the first one cancels it, the second one leaves it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fake_server import Answer, Asked, FakeServer, completed, events, job, output

JOB = "job-00000000000000000001"
PROGRAM = "import sys; from cli.main import main; sys.exit(main())"


@dataclass
class Running:
    """A job that has printed a line and goes on: whether it shall be cancelled, and whether it is."""

    wish: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def running(fake: FakeServer) -> Iterator[Running]:
    running = Running()

    def cancel(_asked: Asked) -> Answer:
        running.wish.set()
        return Answer(body={"jobId": JOB, "status": "running", "message": "Cancellation requested"})

    def log(asked: Asked) -> Answer:
        if "last-event-id" not in asked.headers:
            return events(output("started\n"))
        running.over.wait(30)
        return events(completed("cancelled", None), start=2)

    fake.on(f"GET /api/jobs/{JOB}/log", log)
    fake.on("POST /api/jobs/cancel", cancel)
    fake.on("GET /api/jobs/status", Answer(body={"job": job(status="cancelled", exitCode=None)}))
    yield running
    running.over.set()


@pytest.fixture
def following(fake: FakeServer, running: Running, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    environ = {
        **os.environ,  # noqa: TID251  a process of its own
        "HOSTLER_URL": fake.url, "HOSTLER_API_KEY": "cb_k", "HOSTLER_CONFIG": str(tmp_path / "contexts.json"),
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "jobs", "log", "-f", JOB],
        env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    yield process
    process.kill()
    process.communicate()


def test_the_first_ctrl_c_cancels_the_job_and_the_rest_of_the_log_still_comes(
    following: subprocess.Popen[str], running: Running
) -> None:
    following.send_signal(signal.SIGINT)
    assert running.wish.wait(10)
    running.over.set()
    _, remarks = following.communicate(timeout=20)
    assert following.returncode == 130
    assert f"Job {JOB} was cancelled" in remarks


def test_the_second_ctrl_c_leaves_at_once_and_says_how_to_come_back(
    following: subprocess.Popen[str], running: Running
) -> None:
    following.send_signal(signal.SIGINT)
    assert running.wish.wait(10)
    following.send_signal(signal.SIGINT)
    _, remarks = following.communicate(timeout=20)
    assert following.returncode == 130
    assert f"Try: hostler jobs log -f {JOB}" in remarks
