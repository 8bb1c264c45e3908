"""Files that come back from the server: what jobs left behind, and uploads."""

import os
import shutil
import sys
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from cli import rendering
from cli.client import Client, segment
from cli.failures import Failed

BINARY_SAMPLE_BYTES = 8192


def artifacts(client: Client, job_id: str) -> list[dict[str, Any]]:
    """Return what a job left behind, as the API describes it."""
    return list(client.get(f"/api/jobs/{segment(job_id)}/artifacts")["artifacts"])


def find(client: Client, job_id: str, name: str) -> dict[str, Any]:
    """Return the artifact called `name`. Raises Failed, naming those that there are."""
    found = artifacts(client, job_id)
    for artifact in found:
        if artifact["name"] == name:
            return artifact
    there = ", ".join(rendering.one_line(artifact["name"]) for artifact in found[:10])
    hint = f"hostler jobs artifacts {job_id}"
    raise Failed(
        f"Job {job_id} left no {rendering.one_line(name)!r}; it left {there or 'nothing'}.", hint=hint
    )


def download_all(client: Client, job_id: str, folder: Path, *, only: str | None = None) -> list[Path]:
    """Save every artifact of a job, or the one called `only`, below `folder` under its own name. Raises Failed."""
    saved = []
    for artifact in [find(client, job_id, only)] if only else artifacts(client, job_id):
        target = inside(folder, artifact["name"])
        target.parent.mkdir(parents=True, exist_ok=True)
        save(client, artifact["url"], target)
        saved.append(target)
    rendering.say(
        f"Saved {rendering.count(len(saved), 'artifact')} in {folder}."
        if saved
        else "The job left no artifacts."
    )
    return saved


def inside(folder: Path, name: str) -> Path:
    """Return where a file of that name belongs below `folder`. Raises Failed when its name leads out of it."""
    parts = PurePosixPath(name).parts
    bad = not parts or any(part in {"/", "..", "."} or set(part) & set("\\:\0") for part in parts)
    target = folder.joinpath(*parts) if not bad else folder
    if bad or not target.resolve().is_relative_to(folder.resolve()):
        raise Failed(f"The name {rendering.one_line(name)!r} leads out of {folder}, so it is not saved.")
    return target


def save(client: Client, path: str, target: Path) -> None:
    """Download to the file `target`, which appears whole or not at all."""
    handle, name = tempfile.mkstemp(prefix=".hostler-", dir=target.parent)
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as file, rendering.progress(f"Downloading {target.name}") as advance:
            client.download(path, file, on_progress=advance)
        draft.chmod(0o644 & ~_umask())
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def show(client: Client, path: str, name: str) -> None:
    """Write what is at `path` to stdout. Raises Failed rather than show something binary on a terminal."""
    with tempfile.TemporaryFile() as file:
        client.download(path, file, on_progress=lambda _done, _total: None)
        file.seek(0)
        if not sys.stdout.isatty():
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
            return
        if b"\0" in file.read(BINARY_SAMPLE_BYTES):
            raise Failed(f"{rendering.one_line(name)} is not text.", hint="the same with --download FOLDER")
        file.seek(0)
        rendering.write_output(file.read().decode("utf-8", "replace"), sys.stdout)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
