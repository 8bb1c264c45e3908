"""Artifacts: the files that a job left behind, by name."""

from dataclasses import dataclass
from typing import Any

import orjson

from storage import archive, files, jobs
from storage.calls import command, pairs
from storage.errors import NotFound
from storage.jobs import Job
from storage.objects import Reading
from storage.store import Store

#: How many one job may leave, and how many bytes the name of one may have.
MOST = 1000
NAME_LIMIT_BYTES = 512


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file that an attempt left, under its path relative to the job's directory."""

    name: str
    size_bytes: int
    sha256: str
    content_type: str
    attempt: int
    key: str


def object_key(job_id: str, attempt: int, name: str) -> str:
    """Return the key under which an artifact's bytes lie."""
    return f"artifacts/{job_id}/{attempt}/{name}"


def _artifact(name: str, raw: str) -> Artifact:
    record: dict[str, Any] = orjson.loads(raw)
    return Artifact(
        name=name,
        size_bytes=int(record["size"]),
        sha256=str(record["sha256"]),
        content_type=files.clean_content_type(record.get("contentType"), name),
        attempt=int(record["attempt"]),
        key=str(record["key"]),
    )


async def of_job(store: Store, job: Job) -> list[Artifact]:
    """Return what a job left behind, by name, also when the job has left Redis."""
    rows = await store.call(command("HGETALL", f"h:artifacts:{job.id}", read=pairs))
    if not rows and job.finished and not await store.call(command("EXISTS", f"h:job:{job.id}")):
        stored: Any = await archive.read(store, job.id)
        rows = stored["artifacts"]
    return [_artifact(name, rows[name]) for name in sorted(rows)]


async def get(store: Store, job_id: str, name: str) -> Artifact:
    """Return one artifact. Raises NotFound."""
    for artifact in await of_job(store, await jobs.get(store, job_id)):
        if artifact.name == name:
            return artifact
    raise NotFound("Artifact not found")


async def open_content(store: Store, artifact: Artifact, *, first: int, last: int) -> Reading:
    """Start to read the bytes `first` to `last` inclusive. Raises NotFound."""
    return await store.objects.open(artifact.key, first=first, last=last)
