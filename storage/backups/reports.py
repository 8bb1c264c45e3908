"""What a node says of its work on a backup; only the attempt that holds the job is heard."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from storage.attempts import Holder, Unregistered
from storage.backups.records import signed_proof
from storage.calls import Call, script, text
from storage.errors import NotFound, Stale
from storage.seal import Seal

Held = tuple[str, int]


def _report(holder: Holder, held: Held, said: Mapping[str, Any]) -> Call[None]:
    def read(reply: bytes) -> None:
        outcome = text(reply)
        if outcome == "unregistered":
            raise Unregistered(f"Worker {holder.worker!r} has been registered anew, or removed, since.")
        if outcome == "stale":
            raise Stale(f"Job {held[0]!r} is not, or no longer, held by this worker.")
        if outcome == "missing":
            raise NotFound("The backup job has been removed.")

    return script(
        "backup_report",
        holder.worker,
        holder.registration,
        held[0],
        held[1],
        orjson.dumps(dict(said)),
        read=read,
    )


def progress(
    holder: Holder,
    held: Held,
    *,
    percent: int,
    bytes_done: int,
    bytes_total: int,
    bytes_per_s: int,
    eta_s: int | None,
) -> Call[None]:
    """Say how far it is. Raises Unregistered, Stale, NotFound."""
    told = {
        "percent": percent, "bytes_done": bytes_done, "bytes_total": bytes_total, "bytes_per_s": bytes_per_s,
        "eta_s": eta_s,
    }  # fmt: skip
    return _report(
        holder, held, {"progress": {name: each for name, each in told.items() if each is not None}}
    )


def recorded(  # noqa: PLR0917  who, of what, with which proof
    seal: Seal,
    holder: Holder,
    held: Held,
    backup_id: str,
    record_id: str,
    proof: Mapping[str, Any],
    *,
    summary: str = "",
    warning: str = "",
    adopted: bool = False,
) -> Call[None]:
    """Make a snapshot that is whole a record; `adopted`: one that an earlier run could not tell of.

    `warning` says what the snapshot lacks.

    Safe to repeat. Raises as `progress`.
    """
    told = {
        "id": record_id, "proof": signed_proof(seal, backup_id, record_id, proof), "started": proof["started_ms"],
        "ended": proof["ended_ms"], "size_bytes": proof["size_bytes"], "added_bytes": proof["added_bytes"],
        "summary": summary, "warning": warning,
    }  # fmt: skip
    return _report(holder, held, {"record": {**told, "adopted": True} if adopted else told})


def checked(holder: Holder, held: Held, record_id: str, *, share: float, error: str | None) -> Call[None]:
    """Say what a check of a record has found: nothing wrong, or the `error`. Raises as `progress`."""
    told: dict[str, Any] = {"record": record_id, "share": str(share), "ok": error is None}
    return _report(holder, held, {"checked": told if error is None else {**told, "error": error[:1000]}})


def proven(holder: Holder, held: Held, record_id: str) -> Call[None]:
    """Say that a record was restored and found right. Raises as `progress`."""
    return _report(holder, held, {"proven": {"record": record_id}})


def restored(holder: Holder, held: Held, record_id: str, target: str) -> Call[None]:
    """Say that a record lies restored at `target`. Raises as `progress`."""
    return _report(holder, held, {"restored": {"record": record_id, "target": target}})


def forgotten(holder: Holder, held: Held, record_ids: Sequence[str]) -> Call[None]:
    """Say that records are kept no longer; their data go after this. Raises as `progress`."""
    return _report(holder, held, {"forget": list(record_ids)})


def still_held(holder: Holder, held: Held) -> Call[None]:
    """Ask whether the job is still this attempt's. Raises as `progress`."""
    return _report(holder, held, {})
