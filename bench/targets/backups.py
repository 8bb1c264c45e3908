"""L14: a backup of many files, once more without a change, and its restore."""

import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import httpx

from bench.figure import Bench, Missing
from bench.figures.files import MB
from bench.stack import NO_LIMIT, NO_LIMIT_NOTE, stack
from bench.target import Found, Target, at_most

FILES, SIZE_BYTES = 10_000, 1_000_000_000
PATIENCE_S = 900


def _tree(root: Path) -> Path:
    """Make files of 1 GB in all, half of them hard to compress."""
    chance = random.Random(14)  # noqa: S311  the same sizes each time
    mean = SIZE_BYTES // FILES
    for number in range(FILES):
        folder = root / f"{number % 100}"
        folder.mkdir(parents=True, exist_ok=True)
        size = min(int(chance.expovariate(1 / mean)), 20 * mean)
        whole = os.urandom(size) if number % 2 else (b"line %d\n" % number * (size // 8 + 1))[:size]
        (folder / f"{number}").write_bytes(whole)
    return root


def _done(client: httpx.Client, answer: httpx.Response) -> float:
    """Wait for the end of a job that was accepted, and return how long it took in seconds. Raises RuntimeError."""
    began = time.monotonic()
    job_id = answer.raise_for_status().json()["job_id"]
    while time.monotonic() - began < PATIENCE_S:
        job: dict[str, Any] = client.get("/api/jobs/status", params={"jobId": job_id}).json()["job"]
        if job["status"] == "completed":
            return time.monotonic() - began
        if job["status"] in {"failed", "cancelled"}:
            break
        time.sleep(0.1)
    raise RuntimeError(f"Job {job_id} is {job['status']}.")


def backup(bench: Bench) -> Found:
    """Back a tree up twice, and restore it beside itself. Raises Missing without restic."""
    if shutil.which("restic") is None:
        raise Missing("restic is not installed (apt install restic)")
    tree, target = _tree(bench.directory / "tree"), bench.directory / "restored"
    up = stack(bench, workers=1, **NO_LIMIT)
    with up.client() as client:
        node = client.get("/api/workers/list").json()["workers"][0]["workerId"]
        wish = {"name": "L14", "node_id": node, "volumes": [str(tree)]}
        path = (
            f"/api/backup-jobs/{client.post('/api/backup-jobs', json=wish).raise_for_status().json()['id']}"
        )
        first = _done(client, client.post(f"{path}/run"))
        second = _done(client, client.post(f"{path}/run"))
        new, old = client.get(f"{path}/records").json()["records"]
        restore = client.post(f"{path}/records/{old['id']}/restore", json={"target": str(target)})
        restored = _done(client, restore)
    share = 100 * new["added_bytes"] / max(1, old["added_bytes"])
    said = f"{old['files']} files, {old['size_bytes'] / MB:.0f} MB"
    return Found(
        {"backup": first, "second": second, "restore": restored, "new of the second": share}, (said,)
    )


TARGETS = [
    Target(
        id="L14",
        what="backup of 10,000 files of 1 GB, once more unchanged, and restore",
        limits=(
            at_most("backup", 60, " s"),
            at_most("second", 10, " s"),
            at_most("restore", 60, " s"),
            at_most("new of the second", 1, " %"),
        ),
        measure=backup,
        overrides=(NO_LIMIT_NOTE,),
        notes=("restored files are read back and compared before they take their place",),
    )
]
