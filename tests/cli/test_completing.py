"""What the shell offers after Tab."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_server import Answer, FakeServer, job

ROOT = Path(__file__).parents[2]
PROGRAM = "import sys; sys.argv[0] = 'hostler'; from cli.main import main; sys.exit(main())"


def offered(server: FakeServer, line: str, **environ: str) -> list[str]:
    """Return what bash is offered for the last word of a line, by a process of our own as a shell starts it."""
    words = line.split(" ")
    asked = {
        **os.environ,  # noqa: TID251  a shell's own
        "HOSTLER_URL": server.url,
        "HOSTLER_API_KEY": "cb_x",
        "PYTHONPATH": str(ROOT),
        "_HOSTLER_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        **environ,
    }
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=asked, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.stderr == ""
    return ended.stdout.split()


def test_commands_and_options_are_offered(server: FakeServer) -> None:
    assert offered(server, "hostler sch") == ["scheduler", "schedules"]
    assert set(offered(server, "hostler jobs re")) == {"rerun", "retry"}
    assert "--watch" in offered(server, "hostler jobs list --w")


def test_jobs_apps_and_contexts_are_offered_by_name(server: FakeServer, config: Path) -> None:
    jobs = [job(jobId=name) for name in ("job-1a", "job-1b", "job-2a")]
    server.on("GET /api/jobs/list", Answer(body={"jobs": jobs}))
    server.on("GET /api/apps", Answer(body={"apps": [{"instanceId": "shop"}, {"instanceId": "shop__two"}]}))
    assert offered(server, "hostler jobs show job-1") == ["job-1a", "job-1b"]
    assert offered(server, "hostler apps stop shop__") == ["shop__two"]
    config.parent.mkdir()
    config.write_text('{"current": "a", "contexts": {"prod": {}, "test": {}}}')
    assert offered(server, "hostler contexts use p") == ["prod"]


def test_a_server_that_does_not_answer_is_passed_over(server: FakeServer) -> None:
    assert offered(server, "hostler jobs show x", HOSTLER_URL="http://127.0.0.1:9") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_of_each_shell_is_printed(server: FakeServer, shell: str) -> None:
    asked = {**os.environ, "PYTHONPATH": str(ROOT), "_HOSTLER_COMPLETE": f"source_{shell}"}  # noqa: TID251  as above
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=asked, capture_output=True, text=True, check=False, timeout=60
    )
    assert "_HOSTLER_COMPLETE=complete_" + shell in ended.stdout
