"""Which changes of a backup are allowed, and how the jobs that work on one are accepted."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import orjson

from storage import fleet, jobs, tasks
from storage.apps import placement
from storage.backups import records, sources, times
from storage.backups.records import Backup, Drill, Record, RecordState, Retention, get, newest_good
from storage.calls import script, text
from storage.errors import Conflict, Denied, HostlerError, Invalid, NotFound
from storage.fleet import Worker
from storage.jobs import Job, Order, Submitted, Work
from storage.records import signed
from storage.schedules import Misfire
from storage.store import Store

_ATTEMPTS = 20
#: The data of a backup that is removed stay for so long, in case that it was a mistake.
DATA_STAY_DAYS = 7
#: What data that wait to be deleted are signed as: whoever can write to Redis must not have others deleted.
GONE = "backup data gone"
#: A worker says in its metadata under this name which engine it has.
ENGINE = "backupEngine"

#: Fields that are taken as they are given, and what is made of others; the rest depend on what there was.
_AS_GIVEN = (
    "name", "node", "timezone", "jitter_s", "dest_path", "enabled", "bandwidth_limit", "timeout_s", "schedule",
)  # fmt: skip
_MADE: Mapping[str, Callable[[Any], Any]] = {"excludes": tuple, "tags": tuple, "misfire": Misfire}

_SEGMENT = re.compile(r"(?!backup-)[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of work on a backup."""

    task: tasks.Task
    #: Those of one node that share this wait for one another: two runs would only slow each other down.
    in_turn: bool
    retries: int = 0


KINDS: Mapping[str, Kind] = {
    "run": Kind(tasks.BACKUP_RUN, in_turn=True, retries=2),
    "verify": Kind(tasks.BACKUP_VERIFY, in_turn=True, retries=2),
    "drill": Kind(tasks.BACKUP_DRILL, in_turn=True, retries=2),
    "restore": Kind(tasks.BACKUP_RESTORE, in_turn=False),
}


class _Changed(HostlerError):
    """The wish has changed since it was read."""


class Busy(Conflict):
    """Another job works on the backup."""


class AlreadyFired(HostlerError):
    """An occurrence was fired by another scheduler."""


# What is wished


async def create(store: Store, actor: str, given: Mapping[str, Any], *, admin: bool) -> Backup:
    """Make a backup job. `given` has the fields of Backup, with `hooks` in clear.

    Raises Invalid, Denied without `admin` for paths and commands, NotFound, Conflict where the node cannot serve it.
    """
    backup_id = store.new_id("backup")
    now_ms = store.now_ms()
    bare = Backup(id=backup_id, name="", node="", volumes=(), created_by=actor, created_ms=now_ms)
    backup = _with(store, replace(bare, updated_ms=now_ms), given)
    _check_dest_path(backup.dest_path)
    _allow(bare, backup, admin=admin)
    await node_with_engine(store, backup.node, online=False)
    await _put(store, actor, "create", None, backup)
    return await get(store, backup_id)


async def change(
    store: Store, actor: str, backup_id: str, given: Mapping[str, Any], *, admin: bool
) -> Backup:
    """Replace the fields that `given` names. Raises NotFound, Invalid, Denied, Conflict."""
    for _ in range(_ATTEMPTS):
        before = await get(store, backup_id)
        # answers show the whole of it, which may come back as it is
        if given.get("dest_path", before.prefix).strip("/") not in {
            before.dest_path.strip("/"),
            before.prefix,
        }:
            raise Invalid(
                "dest_path: stays as it is, since the data lie there.",
                details={"dest_path": "stays as it is"},
            )
        after = _with(store, before, {**given, "dest_path": before.dest_path})
        after = replace(after, generation=before.generation + 1, updated_ms=store.now_ms())
        _allow(before, after, admin=admin)
        if after.node != before.node:
            await node_with_engine(store, after.node, online=False)
        try:
            await _put(store, actor, "replace", before, after)
        except _Changed:
            continue
        return await get(store, backup_id)
    raise Conflict(f"Backup job {backup_id!r} is being changed by others; try again.")


async def delete(store: Store, actor: str, backup_id: str, *, keep_data: bool = False) -> None:
    """Remove a backup job and its records; its data follow after DATA_STAY_DAYS, unless they are to stay.

    Raises NotFound, or Conflict while a job works on it.
    """
    for _ in range(_ATTEMPTS):
        before = await get(store, backup_id)
        until = None if keep_data else store.now_ms() + DATA_STAY_DAYS * 86_400_000
        try:
            await _put(store, actor, "delete", before, before, data_until=until)
        except _Changed:
            continue
        return
    raise Conflict(f"Backup job {backup_id!r} is being changed by others; try again.")


async def _put(
    store: Store,
    actor: str,
    action: str,
    before: Backup | None,
    after: Backup,
    *,
    data_until: int | None = None,
) -> None:
    due = times.first(after, store.now_ms())
    # what is due, or was missed, stays so unless it is to happen at other times
    anew = before is None or times.told(before) != times.told(after)
    said = {
        "id": after.id, "action": action, "from": None if before is None else text(before.raw),
        "wish": after.signed_wish(store.seal), "name": after.name, "node": after.node,
        "due": due.run if anew else None, "drill": due.drill if anew else None,
        "gone": None if data_until is None else _gone(store, after, data_until), "data_until": data_until,
    }  # fmt: skip
    said = {name: each for name, each in said.items() if each is not None}
    outcome, _, detail = text(await store.call(script("backup_change", actor, orjson.dumps(said)))).partition(
        " "
    )
    if outcome != "ok":
        raise _refusal(after, outcome, detail)


def _gone(store: Store, backup: Backup, until_ms: int) -> str:
    return signed(store.seal, GONE, GONE, {"id": backup.id, "prefix": backup.prefix, "until_ms": until_ms})


def _with(store: Store, before: Backup, given: Mapping[str, Any]) -> Backup:
    """Return the backup with the given fields. Raises Invalid."""
    plain = {name: given[name] for name in _AS_GIVEN if name in given}
    made = {name: make(given[name]) for name, make in _MADE.items() if name in given}
    after = replace(before, **plain, **made)
    kept = asdict(before.retention) | given.get("retention", {})
    if "retention_count" in given:
        kept["last"] = given["retention_count"]
    if not any(kept.values()):
        raise Invalid("retention: must keep at least one record.", details={"retention": "keeps nothing"})
    after = replace(after, retention=Retention(**kept))
    if "drill" in given:
        after = replace(after, drill=None if given["drill"] is None else _drill(given["drill"]))
    after = _with_hooks(store, after, given)
    times.check(after)
    return after


def _with_hooks(store: Store, after: Backup, given: Mapping[str, Any]) -> Backup:
    """Return the backup with the given commands and sources, whose secrets are kept beside the commands."""
    hooks = after.hooks(store.seal)
    if "volumes" in given:
        volumes, secrets = sources.parsed(given["volumes"])
        names = {each["name"] for each in volumes if "name" in each}
        kept = {name: each for name, each in hooks.get("secrets", {}).items() if name in names}
        hooks["secrets"] = {**kept, **secrets}
        after = replace(after, volumes=volumes)
    if "hooks" in given:
        said = given["hooks"] or {}
        for name in ("pre", "post"):
            hooks[name] = sources.a_command(f"hooks.{name}", said[name]) if said.get(name) else ""
    return after.with_hooks(store.seal, hooks) if "hooks" in given or "volumes" in given else after


def _drill(given: Mapping[str, Any]) -> Drill:
    drill = Drill(**given)
    if drill.command is not None:
        sources.a_command("drill.command", drill.command)
    return drill


def _check_dest_path(path: str) -> None:
    parts = [each for each in path.split("/") if each]
    if len(parts) > 8 or not all(_SEGMENT.fullmatch(each) for each in parts):
        message = "Must be names of letters, digits, '.', '_' and '-' between slashes."
        raise Invalid(f"dest_path: {message}", details={"dest_path": message})


def _allow(before: Backup, after: Backup, *, admin: bool) -> None:
    """Raise Denied where something changes that only an admin may ask a node for."""
    told = ("volumes", "sealed_hooks", "drill", "node", "excludes")
    if admin or not (before.privileged or after.privileged):
        return
    if any(getattr(before, each) != getattr(after, each) for each in told):
        raise Denied(
            "Paths of a node, dumps and commands need an admin; an operator backs up apps and named volumes."
        )


async def node_with_engine(store: Store, node: str, *, online: bool = True) -> Worker:
    """Return a node that can make and read backups. Raises Invalid where there is none, Conflict where it cannot."""
    try:
        worker = await store.call(fleet.fetch(node))
    except NotFound:
        raise _no_node(f"there is no node {node!r}.") from None
    if not placement.is_node(worker):
        raise _no_node(f"{node!r} is an agent, not a node.")
    if online and worker.status != "online":
        raise Conflict(f"Node {node!r} is offline.")
    if not worker.metadata.get(ENGINE) and (online or worker.status == "online"):
        raise Conflict(
            f"Node {node!r} has no restic, which makes backups; install it there (apt install restic, dnf install "
            "restic, brew install restic) and restart its worker."
        )
    return worker


def _no_node(problem: str) -> Invalid:
    return Invalid(f"node_id: {problem}", details={"node_id": problem})


async def any_node_with_engine(store: Store, preferred: str) -> str:
    """Return the preferred node if it is there, or else another one that can read backups. Raises Conflict."""
    return (await nodes_with_engine(store, preferred))[0]


async def nodes_with_engine(store: Store, preferred: str) -> list[str]:
    """Return the nodes that can read backups, the preferred one first if it is there. Raises Conflict for none."""
    found = [
        each.id
        for each in await fleet.workers(store)
        if placement.is_node(each) and each.status == "online" and each.metadata.get(ENGINE)
    ]
    if not found:
        raise Conflict("No node that has restic is online.")
    return sorted(found, key=lambda name: (name != preferred, name))


# What is done


async def run(
    store: Store, actor: str, backup_id: str, *, idempotency: tuple[str, str] | None = None
) -> Submitted:
    """Make a backup now, also of a job that is not enabled. The job's id is that of the record it makes.

    Raises NotFound, Invalid, Unprocessable, or Conflict while another job works on it or its node cannot.
    """
    backup = await get(store, backup_id)
    await node_with_engine(store, backup.node)
    return await accept(store, actor, backup, "run", backup.node, {}, idempotency=idempotency)


async def verify(
    store: Store, actor: str, backup_id: str, record_id: str, *, share: float = 1.0
) -> Submitted:
    """Re-read, decrypt and hash a record, or a share (0 to 1) of all the data. Raises NotFound, Conflict."""
    backup = await get(store, backup_id)
    await _whole(store, backup_id, record_id)
    node = await any_node_with_engine(store, backup.node)
    return await accept(store, actor, backup, "verify", node, {"record": record_id, "share": share})


async def restore(
    store: Store,
    actor: str,
    backup_id: str,
    record_id: str,
    *,
    target: str | None = None,
    node: str | None = None,
    include: Sequence[str] = (),
    dry_run: bool = False,
    admin: bool,
) -> Submitted:
    """Put a record back: where it was, or below `target`, on its node or another one, all of it or nothing.

    `include` names files and directories as the record has them. Raises NotFound, Invalid, Denied without `admin` where
    it goes elsewhere, or Conflict for a record that is corrupt.
    """
    backup = await get(store, backup_id)
    found = await _whole(store, backup_id, record_id, good=True)
    if target is not None:
        target = sources.a_path("target", target)
        if target == "/":
            raise Invalid("target: must not be the root.", details={"target": "the root"})
    include = [sources.a_path(f"include[{index}]", each) for index, each in enumerate(include)]
    origin = str(found.proof["node"])  # the job may be of another node by now, and of other sources
    elsewhere = target is not None or (node or origin) != origin
    privileged = backup.privileged or any(
        each.get("type") not in {"app", "volume"} for each in found.proof["sources"]
    )
    if not admin and not dry_run and (elsewhere or privileged):
        raise Denied("Only an admin may restore paths of a node, or to another place.")
    to = await node_with_engine(store, node or origin)
    said = {"record": found.id, "target": target, "include": list(include), "dry_run": dry_run}
    return await accept(store, actor, backup, "restore", to.id, said)


async def drill(store: Store, actor: str, backup_id: str) -> Submitted:
    """Rehearse a restore of the newest good record. Raises NotFound, Conflict."""
    backup = await get(store, backup_id)
    if await newest_good(store, backup_id) is None:
        raise NotFound(f"Backup job {backup_id!r} has no record that could be restored.")
    await node_with_engine(store, backup.node)
    return await accept(store, actor, backup, "drill", backup.node, {})


async def _whole(store: Store, backup_id: str, record_id: str, *, good: bool = False) -> Record:
    """Return a record that has data. Raises NotFound, Conflict."""
    found = await records.record(store, backup_id, record_id)
    if found.state is RecordState.FAILED:
        raise Conflict(f"Record {record_id!r} is of a run that failed; it has no data.")
    if good and not found.good:
        raise Conflict(f"Record {record_id!r} is corrupt: {found.error or 'a check has failed'}")
    return found


async def restorable(store: Store, backup_id: str, record_id: str) -> Record:
    """Return a record that may be handed out. Raises NotFound, Conflict for one that is corrupt or failed."""
    return await _whole(store, backup_id, record_id, good=True)


async def accept(  # noqa: PLR0917  who does what of which backup, where
    store: Store,
    actor: str,
    backup: Backup,
    kind: str,
    node: str,
    arguments: Mapping[str, Any],
    *,
    at_ms: int | None = None,
    following_ms: int | None = None,
    job_id: str | None = None,
    idempotency: tuple[str, str] | None = None,
) -> Submitted:
    """Accept a job that works on a backup; `at_ms` is the occurrence it is, `following_ms` the next one.

    Raises NotFound, Conflict while another job works on it, AlreadyFired for an occurrence that was.
    """
    change = {
        "id": backup.id, "kind": kind, "from": text(backup.raw), "record": arguments.get("record"), "at": at_ms,
        "following": "" if at_ms is not None and following_ms is None else following_ms,
    }  # fmt: skip
    work = Work(
        KINDS[kind].task, node, {"backup": backup.id, "kind": kind, **arguments}, {},
        {name: each for name, each in change.items() if each is not None},
        lambda why, detail: _refusal(backup, why, detail), about="backup",
    )  # fmt: skip
    order = Order(
        name=f"backup {kind} {backup.name}"[:200], timeout_s=backup.timeout_s, retries=KINDS[kind].retries,
        backoff=jobs.Backoff(30, 4, 600), concurrency_key=f"backups@{node}" if KINDS[kind].in_turn else None,
    )  # fmt: skip
    return await store.call(
        jobs.submission(
            store, actor, order, job_id=job_id or store.new_id("job"), work=work, idempotency=idempotency
        )
    )


def _refusal(backup: Backup, why: str, detail: str) -> HostlerError:
    if why == "missing":
        return NotFound(f"There is no backup job {backup.id!r}.")
    if why == "busy":
        return Busy(f"Job {detail} works on backup job {backup.name!r}; wait for it, or cancel it.")
    if why == "fired":
        return AlreadyFired(backup.id)
    if why == "changed":
        return _Changed(f"Backup job {backup.name!r} was changed meanwhile; try again.")
    return Conflict(f"Backup job {backup.id!r} exists already.")


async def again(store: Store, actor: str, job: Job) -> Submitted:
    """Ask once more for what a finished job did with a backup. Raises NotFound, Conflict."""
    spec = job.spec
    if spec["kind"] == "restore":
        raise Conflict("A restore is not repeated; ask for it anew.")
    if spec["kind"] == "verify":
        return await verify(store, actor, spec["backup"], spec["record"], share=spec["share"])
    return await (run if spec["kind"] == "run" else drill)(store, actor, spec["backup"])
