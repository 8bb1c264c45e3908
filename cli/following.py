"""A job watched until it ends: its log as it comes, Ctrl+C to cancel it, its exit code as our own."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from cli import rendering
from cli.client import Client, running, segment
from cli.failures import Failed

TIMED_OUT = 124
WITHOUT_EXIT_CODE = 125
CANCELLED = 130

#: Who follows a job that has not started by then is told why.
EXPLAIN_AFTER_S = 3.0

ENDINGS = {"completed": "completed", "cancelled": "was cancelled"}
#: What a job's reason to fail means, where the word itself would not say it to everybody.
FAILURES = {
    "exit_code": "failed",
    "timeout": "failed: it ran out of time",
    "lost": "failed: its worker was lost",
    "quarantined": "failed: too many workers died while they ran it",
    "invalid": "failed: it could not be started",
    "integrity": "failed: its record was tampered with",
}


def follow(client: Client, job_id: str, *, as_json: bool = False) -> int:
    """Show the log of a job until it ends, then how it ended, and return the exit code that stands for that.

    With `as_json` stdout holds the job alone, and everything it printed goes to stderr.
    """
    job = watch(client, job_id, quiet=as_json)
    if as_json:
        rendering.write_json(job)
    else:
        summarise(job)
    return exit_code(job)


def watch(client: Client, job_id: str, *, quiet: bool = False) -> dict[str, Any]:
    """Show the log of a job until it ends, all of it on stderr if `quiet`, and return the job."""
    with _cancelling(client, job_id):
        _show_log(client, job_id, as_json=quiet)
        return fetch(client, job_id)


def fetch(client: Client, job_id: str) -> dict[str, Any]:
    """Return a job as the API describes it."""
    return dict(client.get("/api/jobs/status", jobId=job_id)["job"])


def exit_code(job: dict[str, Any]) -> int:
    """Return what a command that stands for `job` exits with: its own code, 124, 125 or 130."""
    if job["status"] == "cancelled":
        return CANCELLED
    if job.get("reason") == "timeout":
        return TIMED_OUT
    code = job.get("exitCode")
    if job["status"] == "completed":
        return int(code or 0)
    if code:
        return int(code)
    return 1 if _is_the_nodes(job) and job.get("reason") in {None, "invalid"} else WITHOUT_EXIT_CODE


def _is_the_nodes(job: dict[str, Any]) -> bool:
    """Tell whether a job is a node's own work, such as a backup, which runs no command and has no exit code."""
    return job.get("command") is None and job.get("argv") is None


def summarise(job: dict[str, Any]) -> None:
    """Tell on stderr how a job ended and how long that took."""
    waited, ran = durations(job)
    ending = ENDINGS.get(job["status"], job["status"])
    if job["status"] == "failed":
        reason = job.get("reason") or ""
        ending = FAILURES.get(reason, f"failed ({reason})")
        if reason == "invalid" and _is_the_nodes(job):
            ending = "failed"  # its message tells why
    parts = [f"Job {job['jobId']} {ending}"]
    if job.get("exitCode") is not None:
        parts.append(f"exit code {job['exitCode']}")
    if waited is not None:
        parts.append(f"waited {rendering.duration(waited)}")
    if ran is not None:
        parts.append(f"ran {rendering.duration(ran)}")
    if job.get("workerId"):
        parts.append(f"on {rendering.one_line(job['workerId'])}")
    rendering.say(", ".join(parts) + ".", style=rendering.STATUS_STYLES.get(job["status"], ""))
    if job.get("message"):
        rendering.say(rendering.harmless(str(job["message"])))


def durations(job: dict[str, Any]) -> tuple[float | None, float | None]:
    """Return how long a job waited and ran, in seconds; None for what has not ended yet."""
    waited_ms, ran_ms = job.get("waitedMs"), job.get("ranMs")
    return (None if waited_ms is None else waited_ms / 1000), (None if ran_ms is None else ran_ms / 1000)


def tell_gap(gap: dict[str, Any]) -> None:
    """Say on stderr which lines of a log are missing."""
    rendering.say(f"[lines {gap['from']} to {gap['to']} are not kept any more]", style="yellow")


def _show_log(client: Client, job_id: str, *, as_json: bool) -> None:
    def lost() -> None:
        rendering.say("The connection was lost; trying again.", style="yellow")

    explaining = threading.Timer(EXPLAIN_AFTER_S, _explain, (client, job_id))
    events = client.follow(f"/api/jobs/{segment(job_id)}/log", on_loss=lost)
    with contextlib.closing(events), running(explaining):
        for event in events:
            if event.name != "queued":
                explaining.cancel()
            if event.name == "output":
                to_stderr = as_json or event.data.get("stream") == "stderr"
                rendering.write_output(event.data["data"], sys.stderr if to_stderr else sys.stdout)
            elif event.name == "completed":
                break
            elif event.name == "gap":
                tell_gap(event.data)
            elif event.name == "started":
                again = f", attempt {event.data['attempt']}" if event.data.get("attempt", 1) > 1 else ""
                rendering.say(
                    f"Running on {rendering.one_line(event.data.get('workerId') or 'a worker')}{again}."
                )
    for stream in (sys.stdout, sys.stderr):
        if stream.isatty():
            stream.write("\x1b[0m")  # whatever colour the job left on


def _explain(client: Client, job_id: str) -> None:
    """Say on stderr why nothing happens yet."""
    with contextlib.suppress(Failed), Client(client.server, client.contexts) as another:
        for reason in another.get(f"/api/jobs/{segment(job_id)}/why").get("reasons", []):
            rendering.say(f"Waiting: {rendering.harmless(reason['message'])}", style="yellow")


@contextlib.contextmanager
def _cancelling(client: Client, job_id: str) -> Iterator[None]:
    """Take the first Ctrl+C as the wish to cancel the job, and the second as the wish to leave it alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def cancel() -> None:
        with Client(client.server, client.contexts) as another:
            try:
                another.call("POST", "/api/jobs/cancel", body={"jobId": job_id}, repeatable=True)
            except Failed as error:
                rendering.say(str(error), style="red")

    def interrupted(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        rendering.say("\nCancelling the job. Ctrl+C again to leave at once.", style="yellow")
        threading.Thread(target=cancel, daemon=True).start()

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    except KeyboardInterrupt:
        raise Failed(
            f"Left job {job_id}, which may still be running.",
            hint=f"hostler jobs log -f {job_id}",
            exit_code=CANCELLED,
        ) from None
    finally:
        signal.signal(signal.SIGINT, before)
