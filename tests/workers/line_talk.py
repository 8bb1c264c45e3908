"""What an agent says over its line, and what it is answered."""

from typing import Any

import engine
from fake_server import Answer, error
from faulty_api import Client, Refused

from storage import jobs
from storage.jobs import State
from storage.store import Store
from workers.lines import Offer

NOT_NOW = Refused(503, ((b"retry-after", b"0"),))


def job(**more: Any) -> Answer:
    return Answer(
        200, {"job": {"jobId": "job-1", "attempt": 1, "command": "true", "timeout": 60, "lines": 0, **more}}
    )


def refusal(status: int, code: str, message: str = "No.") -> Answer:
    answer = error(status, message)
    return Answer(status, answer.body, {"X-Error-Code": code})


async def say(client: Client, offer: Offer, data: bytes, first_line: int = 0, channel: str = "o") -> Any:
    return await client.line.output(offer, channel, data, first_line=first_line, line_count=data.count(b"\n"))


async def complete(client: Client, offer: Offer, exit_code: int = 0) -> str:
    outcome, reason = ("completed", "") if exit_code == 0 else ("failed", "exit_code")
    return await client.line.settle(offer, outcome, reason, exit_code, {"cpu_ms": 7, "max_rss_bytes": 4096})


async def run_out(store: Store, job_id: str) -> bool:
    """Let the first attempt's lease run out, and tell whether that was noticed."""
    job = await jobs.get(store, job_id)
    if job.attempt == 1 and job.state is State.RUNNING:
        await store.call(jobs.command("SET", "h:reaper:last", store.now_ms()))
        await store.call(jobs.command("ZADD", "h:leases", 1, job_id))
        await engine.reap(store)
        return False
    return True
