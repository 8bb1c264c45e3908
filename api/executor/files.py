"""CMD Executor's files: upload them, directly or through here, download them, list and delete them."""

from collections.abc import Awaitable, Callable
from typing import Any

from falcon.asgi import Request, Response
from marshmallow import Schema, fields, validate

from api import body, downloads, multipart
from api.dialect import EXECUTOR
from api.downloads import Content
from api.endpoint import Context, Endpoint, Group, HTTPStatus, Role
from api.errors import RangeNotSatisfiable, UnsupportedMediaType
from api.paging import PageAnswer, PageQuery, envelope, sort_field
from api.times import Time
from storage import files, grants
from storage.errors import Conflict, Denied, Invalid, NotFound, Unavailable, Unprocessable
from storage.files import File

group = Group("Files", "/api/files", EXECUTOR)


class FileAnswer(Schema):
    """One file, as the page shows it, and its digest and type."""

    fileId = fields.String(required=True, attribute="id")
    filename = fields.String(required=True)
    size = fields.Integer(required=True, attribute="size_bytes", metadata={"description": "Bytes."})
    uploadedAt = Time(required=True, attribute="uploaded_ms")
    url = fields.String(required=True)
    expiresAt = Time(required=True, attribute="expires_ms")
    sha256 = fields.String(required=True)
    contentType = fields.String(required=True, attribute="content_type")
    uploadedBy = fields.String(required=True, attribute="uploaded_by")


class FilesAnswer(PageAnswer):
    """A page of files, under the row's own key and under the Pagination section's."""

    files = fields.List(fields.Nested(FileAnswer), required=True)
    data = fields.List(fields.Nested(FileAnswer), required=True)


class FilesQuery(PageQuery):
    """Which page of the files."""

    sort = sort_field("uploadedAt", default="-uploadedAt")


class PresignBody(Schema):
    """The file that is going to be put."""

    filename = fields.String(required=True, validate=validate.Length(1, 4096))
    size = fields.Integer(required=True, strict=True, validate=validate.Range(min=0))
    contentType = fields.String()
    sha256 = fields.String()


class PresignAnswer(Schema):
    """How to put the file: one request of `method` to `uploadUrl` with exactly these headers."""

    fileId = fields.String(required=True)
    uploadUrl = fields.String(required=True)
    method = fields.String(required=True)
    headers = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    expiresAt = Time(required=True)


class DownloadQuery(Schema):
    """How to download."""

    redirect = fields.Boolean(load_default=False)


class DeletedAnswer(Schema):
    """The file that is gone."""

    fileId = fields.String(required=True)
    deleted = fields.Boolean(required=True)


@group.endpoint(
    "POST /upload",
    role=Role.OPERATOR,
    returns=FileAnswer(),
    status=HTTPStatus.CREATED,
    raises=(files.InvalidFile, Invalid, UnsupportedMediaType, Unavailable),
    raw=True,
    takes="multipart/form-data",
)
async def upload(context: Context, req: Request, resp: Response) -> None:
    """Upload one file as the part `file` of a multipart form; it is kept for 31 days."""
    store = context.store
    try:
        boundary = multipart.boundary_of(req.content_type)
        most_bytes = store.settings.upload_limit_bytes + multipart.AROUND_LIMIT_BYTES
        if req.content_length is not None and req.content_length > most_bytes:
            raise files.too_large(store)
        form = multipart.FormReader(body.Incoming(req).read_into, boundary)
        part = await form.file("file")
        file = await files.accept(
            store,
            form.read_into,
            filename=part.filename or "",
            content_type=part.content_type,
            actor=context.caller.actor,
        )
    except BaseException:
        # the rest of the body is not wanted, and would otherwise be read to its end and thrown away
        resp.set_header("Connection", "close")
        raise
    _declared(upload).render(req, resp, file)


@group.endpoint(
    "POST /presign",
    role=Role.OPERATOR,
    body=PresignBody(),
    returns=PresignAnswer(),
    status=HTTPStatus.CREATED,
    raises=(files.InvalidFile, Invalid, Unavailable),
)
async def presign(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Announce a file and get a URL to put it to directly; call `complete` when it is there."""
    file, url = await files.presign(
        context.store,
        filename=body["filename"],
        size_bytes=body["size"],
        content_type=body.get("contentType"),
        sha256=body.get("sha256"),
        actor=context.caller.actor,
    )
    return {
        "fileId": file.id,
        "uploadUrl": url,
        "method": "PUT",
        "headers": {
            "Content-Type": file.content_type,
            "Content-Length": str(file.size_bytes),
            "If-None-Match": "*",
        },
        "expiresAt": context.store.now_ms() + files.PRESIGNED_UPLOAD_S * 1000,
    }


@group.endpoint(
    "POST /{fileId}/complete",
    role=Role.OPERATOR,
    returns=FileAnswer(),
    raises=(NotFound, Conflict, Unprocessable, Unavailable),
)
async def complete(context: Context, fileId: str) -> File:  # noqa: N803  as the path spells it
    """Take in a file that was put to its presigned URL, once size and digest are right. May be repeated."""
    return await files.complete(context.store, fileId)


@group.endpoint("GET /list", role=Role.VIEWER, query=FilesQuery(), returns=FilesAnswer(), raises=(Invalid,))
async def list_files(context: Context, query: dict[str, Any]) -> dict[str, Any]:
    """List the files that are there, the newest first."""
    total, found = await files.page(
        context.store,
        limit=query["limit"],
        offset=query["offset"],
        descending=query["sort"].startswith("-"),
    )
    return envelope("files", found, total, query)


@group.endpoint("GET /{fileId}", role=Role.VIEWER, returns=FileAnswer(), raises=(NotFound,))
async def show(context: Context, fileId: str) -> File:  # noqa: N803  as the path spells it
    """Describe one file."""
    return await files.get(context.store, fileId)


@group.endpoint(
    "DELETE /{fileId}",
    role=Role.OPERATOR,
    returns=DeletedAnswer(),
    raises=(NotFound, Conflict, Unavailable),
)
async def delete(context: Context, fileId: str) -> dict[str, Any]:  # noqa: N803  as the path spells it
    """Delete a file, unless a job that has not ended needs it."""
    await files.delete(context.store, fileId, actor=context.caller.actor)
    return {"fileId": fileId, "deleted": True}


@group.endpoint(
    "GET /download/{fileId}",
    role=Role.VIEWER | Role.WORKER,
    query=DownloadQuery(),
    raises=(NotFound, Denied, RangeNotSatisfiable, Unavailable),
    raw=True,
    media_type="application/octet-stream",
)
async def download(
    context: Context,
    req: Request,
    resp: Response,
    *,
    fileId: str,  # noqa: N803  as the path spells it
    query: dict[str, Any],
    filename: str | None = None,
) -> None:
    """Download a file, or the part that Range names; `?redirect=1` answers with a URL of the object store.

    A worker may read the files of the jobs it holds.
    """
    store, caller = context.store, context.caller
    if caller.kind == "worker" and not await grants.may_read_file(store, caller.id, fileId):
        raise Denied("A worker may read the files of the jobs it holds, and no others.")
    file = await files.get(store, fileId)
    if filename not in {None, file.filename}:
        raise NotFound("File not found")
    if downloads.unchanged(req, resp, file.sha256):
        return
    if query["redirect"]:
        resp.status = 302
        resp.location = await files.presigned_url(store, file)
        return

    async def read(first: int, last: int) -> Any:
        return await files.open_content(store, file, first=first, last=last)

    content = Content(file.filename, file.content_type, file.size_bytes, file.sha256, read)
    await downloads.serve(req, resp, content)


group.alias("HEAD /api/files/download/{fileId}", of=download)
group.alias("GET /uploads/{fileId}/{filename}", of=download)
group.alias("HEAD /uploads/{fileId}/{filename}", of=download)


def _declared(handler: Callable[..., Awaitable[Any]]) -> Endpoint:
    return next(endpoint for endpoint in group.endpoints if endpoint.handler is handler)
