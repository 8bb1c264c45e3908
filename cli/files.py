"""`hostler files`: uploads, put there, fetched back and listed."""

from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer

from cli import rendering, watching
from cli.artifacts import inside, save, show
from cli.client import segment
from cli.options import ApiKey, Json, Limit, Offset, Url, Watch, connect
from cli.submitting import upload

app = typer.Typer(no_args_is_help=True, help="Upload files, fetch them back, list them.")
FileId = Annotated[str, typer.Argument(metavar="FILE", help="Id of the file.")]


@app.command("up")
def up(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Files, or folders to zip.", exists=True)
    ],
    direct: Annotated[
        bool, typer.Option("--direct", help="Put them to the object store itself, past the server.")
    ] = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Upload files, and folders as zips; prints each one's id."""
    with connect(url, api_key) as client:
        uploaded = [upload(client, path, direct=direct) for path in paths]
    if as_json:
        rendering.write_json({"files": uploaded})
        return
    for file in uploaded:
        rendering.stdout().print(file["fileId"])


@app.command("down")
def down(
    file_id: FileId,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File or folder to save it in; - for stdout.")
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Download a file under the name that it was uploaded with."""
    path = f"/api/files/download/{segment(file_id)}"
    with connect(url, api_key) as client:
        if output == Path("-"):
            show(client, path, file_id)
            return
        target = output or Path()
        if target.is_dir():
            filename = str(client.get(f"/api/files/{segment(file_id)}")["filename"])
            target = inside(target, PurePosixPath(filename).name)
        save(client, path, target)
    if as_json:
        rendering.write_json({"fileId": file_id, "path": str(target), "size": target.stat().st_size})
    else:
        rendering.stdout().print(str(target))


@app.command("ls")
def ls(
    *,
    limit: Limit = 20,
    offset: Offset = 0,
    watch: Watch = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List uploads, the newest first."""
    watching.show(
        url, api_key, lambda client: client.get("/api/files/list", limit=limit, offset=offset), _draw,
        as_json=as_json, watch=watch,
    )  # fmt: skip


def _draw(answer: dict[str, Any]) -> None:
    rendering.print_table(
        ("FILE", "NAME", "SIZE", "UPLOADED", "EXPIRES"),
        (
            (
                file["fileId"],
                file["filename"],
                rendering.size(file["size"]),
                rendering.ago(file["uploadedAt"]),
                file["expiresAt"],
            )
            for file in answer["files"]
        ),
        empty="There are no files. Upload one with: hostler files up PATH",
    )
    rendering.tell_more(answer)


@app.command("show")
def show_one(file_id: FileId, url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show one upload: its name, size, digest, and until when it is kept."""
    with connect(url, api_key) as client:
        file = client.get(f"/api/files/{segment(file_id)}")
    if as_json:
        rendering.write_json(file)
        return
    rendering.print_facts(
        (
            ("file", file["fileId"]),
            ("name", file["filename"]),
            ("size", rendering.size(file["size"])),
            ("type", file["contentType"]),
            ("sha256", file["sha256"]),
            ("uploaded", rendering.ago(file["uploadedAt"])),
            ("by", file["uploadedBy"]),
            ("expires", file["expiresAt"]),
        )
    )


@app.command("rm")
def rm(file_id: FileId, url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Delete an upload, unless a job still needs it."""
    with connect(url, api_key) as client:
        answer = client.call("DELETE", f"/api/files/{segment(file_id)}")
    if as_json:
        rendering.write_json(answer)
    else:
        rendering.stdout().print(f"File {file_id} is gone.")
