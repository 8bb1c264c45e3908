"""The peer of a submit: FastAPI and arq, as their documentation shows it; runs in an environment of its own."""

from typing import Any

from arq import create_pool
from arq.connections import RedisSettings
from fastapi import FastAPI
from pydantic import BaseModel


class Job(BaseModel):
    """What is asked for."""

    command: str


def create(redis_url: str) -> FastAPI:
    """Return the application: POST /push."""
    app = FastAPI()
    pools: list[Any] = []

    @app.post("/push", status_code=201)  # type: ignore[untyped-decorator]  # FastAPI is not installed here
    async def push(job: Job) -> dict[str, Any]:
        if not pools:
            pools.append(await create_pool(RedisSettings.from_dsn(redis_url)))
        queued = await pools[0].enqueue_job("noop", job.command)
        return {"id": queued.job_id if queued else None}

    return app
