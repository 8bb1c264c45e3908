"""A backup as it is wished, what its node reports beside that, and the records that its runs have left."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import orjson

from storage.calls import command, pairs, script, text
from storage.errors import NotFound
from storage.records import genuine, opened, signed
from storage.schedules import Misfire
from storage.seal import Seal
from storage.store import Store

ID = re.compile(r"backup-[0-9a-z]{20}")
#: A record has the id of the job that made it.
RECORD_ID = re.compile(r"job-[0-9a-z]{20}(-[0-9]{1,14})?")

#: Kinds of sources that are files of the node, and those that a command dumps.
FILES = frozenset({"path", "app", "volume"})
DUMPS = frozenset({"postgresql", "mysql", "redis", "command"})


class RecordState(StrEnum):
    """What a record is worth."""

    COMPLETED = "completed"  #: whole, as far as is known
    CORRUPT = "corrupt"  #: a check has found that it cannot be restored
    FAILED = "failed"  #: the run came to nothing


@dataclass(frozen=True, slots=True)
class Retention:
    """How many records are kept: the newest `last`, and the newest of so many days, weeks and months."""

    last: int = 7
    daily: int = 0
    weekly: int = 0
    monthly: int = 0


@dataclass(frozen=True, slots=True)
class Drill:
    """A rehearsal: when (`schedule`, cron), of which share of the files (`sample`), and what checks the result.

    `command` runs in the restored directory; it proves the record by ending with 0. After `max_age_days` without a
    proof an event says so.
    """

    schedule: str | None = None
    command: str | None = None
    sample: float = 1.0
    max_age_days: float = 35.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A backup job: the signed wish, and what has come of it. Times are milliseconds since the epoch."""

    id: str
    name: str
    node: str
    volumes: tuple[Mapping[str, Any], ...]
    schedule: str | None = None
    timezone: str = "UTC"
    jitter_s: int = 0
    misfire: Misfire = Misfire.ONE
    retention: Retention = Retention()
    dest_path: str = ""
    enabled: bool = True
    bandwidth_limit: int | None = None  # bytes a second
    excludes: tuple[str, ...] = ()
    sealed_hooks: str | None = None  # commands before and after, and the secrets of sources
    has_hooks: bool = False
    timeout_s: int = 6 * 3600
    tags: tuple[str, ...] = ()
    drill: Drill | None = None
    created_by: str = ""
    created_ms: int = 0
    updated_ms: int = 0
    generation: int = 1

    # beside the wish
    raw: bytes = b""
    job: str | None = None
    next_ms: int | None = None
    drill_next_ms: int | None = None
    succeeded_ms: int | None = None
    ended_ms: int | None = None
    last_state: str | None = None
    error: str | None = None
    proven_ms: int | None = None
    progress: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """Return where its data lie in the bucket: always below `backups/`, never inside another's."""
        return "/".join(part for part in ("backups", self.dest_path.strip("/"), self.id) if part)

    def signed_wish(self, seal: Seal) -> str:
        """Return the wish as it lies in Redis, signed as a whole."""
        fields = {name: getattr(self, name) for name in _WISH}
        return signed(seal, "backup", self.id, fields)

    def hooks(self, seal: Seal) -> dict[str, Any]:
        """Return what is sealed: `pre` and `post` commands, and `secrets` of sources by their name. Raises Forged."""
        if self.sealed_hooks is None:
            return {}
        found: dict[str, Any] = seal.decrypt_json("backup hooks", self.sealed_hooks, bound_to=self.id)
        return found

    def with_hooks(self, seal: Seal, hooks: Mapping[str, Any]) -> "Backup":
        """Return the backup with other hooks and secrets."""
        given = {name: each for name, each in hooks.items() if each}
        sealed = seal.encrypt_json("backup hooks", given, bound_to=self.id) if given else None
        return replace(self, sealed_hooks=sealed, has_hooks=bool(given.get("pre") or given.get("post")))

    @property
    def privileged(self) -> bool:
        """Whether it reads paths of the node's own, or runs commands there: what only admins may ask for."""
        touches = any(each["type"] not in {"app", "volume"} for each in self.volumes)
        return touches or self.has_hooks or (self.drill is not None and self.drill.command is not None)


#: What of a backup is wished, and signed.
_WISH = (
    "id", "name", "node", "volumes", "schedule", "timezone", "jitter_s", "misfire", "retention", "dest_path", "enabled",
    "bandwidth_limit", "excludes", "sealed_hooks", "has_hooks", "timeout_s", "tags", "drill", "created_by",
    "created_ms", "updated_ms", "generation",
)  # fmt: skip


def read(seal: Seal, backup_id: str, row: Mapping[str, str]) -> Backup:
    """Read a backup as HGETALL answers it. Raises Forged when its wish is not ours."""
    raw = row["wish"].encode()
    wish = opened(seal, "backup", backup_id, raw)

    def number(name: str) -> int | None:
        return int(row[name]) if row.get(name) else None

    return Backup(
        **{
            **wish, "volumes": tuple(wish["volumes"]), "misfire": Misfire(wish["misfire"]),
            "retention": Retention(**wish["retention"]), "excludes": tuple(wish["excludes"]),
            "tags": tuple(wish["tags"]), "drill": None if wish["drill"] is None else Drill(**wish["drill"]),
        },
        raw=raw, job=row.get("job") or None, next_ms=number("next"), drill_next_ms=number("drill_next"),
        succeeded_ms=number("succeeded"), ended_ms=number("ended"), last_state=row.get("state") or None,
        error=row.get("error") or None, proven_ms=number("proven"),
        progress=orjson.loads(row.get("progress") or "{}"),
    )  # fmt: skip


def known(backup_id: str) -> str:
    """Return `backup_id` if it can be one at all. Raises NotFound."""
    if not ID.fullmatch(backup_id):
        raise NotFound(f"There is no backup job {backup_id!r}.")
    return backup_id


async def get(store: Store, backup_id: str) -> Backup:
    """Return one backup. Raises NotFound; Forged when Redis holds one that is not ours."""
    row = await store.call(command("HGETALL", f"h:backup:{known(backup_id)}", read=pairs))
    if "wish" not in row:
        raise NotFound(f"There is no backup job {backup_id!r}.")
    return read(store.seal, backup_id, row)


async def page(store: Store, *, limit: int, offset: int) -> tuple[list[Backup], int]:
    """Return backups, the oldest first, and how many there are; the forged are left out."""
    total, ids = await store.calls(
        command("ZCARD", "h:backups"), command("ZRANGE", "h:backups", offset, offset + limit - 1)
    )
    return await _several(store, ids), total


async def every(store: Store) -> list[Backup]:
    """Return all backups, the oldest first; the forged are left out."""
    return await _several(store, await store.call(command("ZRANGE", "h:backups", 0, -1)))


async def _several(store: Store, ids: Sequence[bytes]) -> list[Backup]:
    names = [text(each) for each in ids]
    rows = await store.calls(*(command("HGETALL", f"h:backup:{each}", read=pairs) for each in names))
    raws = ((name, orjson.dumps(row)) for name, row in zip(names, rows, strict=True) if "wish" in row)
    return genuine(raws, lambda name, row: read(store.seal, name, orjson.loads(row)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What one run has left. `proof` is what the node signed of a run that came to its end; a failed one has none."""

    id: str
    backup: str
    state: RecordState
    started_ms: int
    ended_ms: int
    error: str | None = None
    verified_ms: int | None = None
    verified_share: float | None = None
    proven_ms: int | None = None
    proof: Mapping[str, Any] = field(default_factory=dict)

    @property
    def snapshot(self) -> str:
        """Return the engine's id of the snapshot; empty for a failed run."""
        return str(self.proof.get("snapshot", ""))

    @property
    def good(self) -> bool:
        """Whether it can be restored, as far as is known."""
        return self.state is RecordState.COMPLETED


#: What a node signs of a complete run: the snapshot, the digest of its content, and how much it is.
PROOF = (
    "snapshot", "digest", "started_ms", "ended_ms", "size_bytes", "added_bytes", "files", "node", "engine", "sources",
    "prefix",
)  # fmt: skip


def signed_proof(seal: Seal, backup_id: str, record_id: str, proof: Mapping[str, Any]) -> str:
    """Return the proof of a record as it lies in Redis."""
    return signed(seal, "backup record", f"{backup_id}:{record_id}", {name: proof[name] for name in PROOF})


def read_record(seal: Seal, backup_id: str, record_id: str, row: Mapping[str, str]) -> Record:
    """Read a record as HGETALL answers it. Raises Forged when its proof is not ours."""
    state = RecordState(row.get("state", ""))
    proof = {}
    if state is not RecordState.FAILED:
        proof = opened(seal, "backup record", f"{backup_id}:{record_id}", row["proof"].encode())

    def number(name: str) -> int | None:
        return int(row[name]) if row.get(name) else None

    return Record(
        id=record_id, backup=backup_id, state=state, started_ms=number("started") or 0, ended_ms=number("ended") or 0,
        error=row.get("error") or None, verified_ms=number("verified"),
        verified_share=float(row["share"]) if row.get("share") else None, proven_ms=number("proven"), proof=proof,
    )  # fmt: skip


async def record(store: Store, backup_id: str, record_id: str) -> Record:
    """Return one record. Raises NotFound; Forged when Redis holds one that is not ours."""
    row: dict[str, str] = {}
    if RECORD_ID.fullmatch(record_id):
        row = await store.call(
            command("HGETALL", f"h:backuprecord:{known(backup_id)}:{record_id}", read=pairs)
        )
    if "state" not in row:
        raise NotFound(f"Backup job {backup_id!r} has no record {record_id!r}.")
    return read_record(store.seal, backup_id, record_id, row)


async def records(
    store: Store, backup_id: str, *, limit: int = 10_000, offset: int = 0
) -> tuple[list[Record], int]:
    """Return the records of a backup, the newest first, and how many there are; the forged are left out."""

    def rows(reply: list[Any]) -> tuple[list[tuple[str, dict[str, str]]], int]:
        return [(text(name), pairs(row)) for name, row in reply[1]], reply[0]

    found, total = await store.call(script("backup_records", known(backup_id), offset, limit, read=rows))
    raws: Iterable[tuple[str, bytes]] = ((name, orjson.dumps(row)) for name, row in found if "state" in row)
    return genuine(raws, lambda name, row: read_record(store.seal, backup_id, name, orjson.loads(row))), total


async def newest_good(store: Store, backup_id: str) -> Record | None:
    """Return the newest record that can be restored, as far as is known."""
    found, _ = await records(store, backup_id)
    return next((each for each in found if each.good), None)
