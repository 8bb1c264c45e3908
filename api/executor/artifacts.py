"""What jobs left behind, as CMD Executor's clients list and download it."""

from typing import Any
from urllib.parse import quote

from falcon.asgi import Request, Response

from api import downloads
from api.downloads import Content
from api.endpoint import Context, Role
from api.errors import RangeNotSatisfiable
from api.executor import schemas
from api.executor.jobs import group
from storage import artifacts, jobs
from storage.errors import NotFound, Unavailable


@group.endpoint(
    "GET /{id}/artifacts",
    role=Role.VIEWER,
    returns=schemas.ArtifactsAnswer(),
    raises=(NotFound, Unavailable),
)
async def list_artifacts(context: Context, id: str) -> dict[str, Any]:
    """List the files that a job left, by name."""
    job = await jobs.get(context.store, id)
    entries = [
        {
            "name": each.name,
            "size": each.size_bytes,
            "sha256": each.sha256,
            "content_type": each.content_type,
            "attempt": each.attempt,
            "url": f"/api/jobs/{job.id}/artifacts/{quote(each.name)}",
        }
        for each in await artifacts.of_job(context.store, job)
    ]
    return {"job_id": job.id, "artifacts": entries, "total": len(entries)}


@group.endpoint(
    "GET /{id}/artifacts/{name:path}",
    role=Role.VIEWER,
    raises=(NotFound, RangeNotSatisfiable, Unavailable),
    raw=True,
    media_type="application/octet-stream",
)
async def download_artifact(
    context: Context,
    req: Request,
    resp: Response,
    *,
    id: str,
    name: str,
) -> None:
    """Download a file that a job left, or the part that Range names."""
    artifact = await artifacts.get(context.store, id, name)
    if downloads.unchanged(req, resp, artifact.sha256):
        return

    async def read(first: int, last: int) -> Any:
        return await artifacts.open_content(context.store, artifact, first=first, last=last)

    filename = artifact.name.rpartition("/")[2]
    content = Content(filename, artifact.content_type, artifact.size_bytes, artifact.sha256, read)
    await downloads.serve(req, resp, content)
