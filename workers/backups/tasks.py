"""The tasks of backups: run, restore, verify, drill. Each may be cut off anywhere, and begun again later."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from storage import backups
from storage.attempts import Unregistered
from storage.backups import Record, RecordState, reports
from storage.backups.records import RECORD_ID
from storage.errors import Conflict, HostlerError, NotFound, Stale, Unavailable
from workers.backups import sources
from workers.backups.engine import Corrupt, EngineFailed, Snapshot
from workers.backups.restoring import restored
from workers.backups.sources import CommandFailed, Found
from workers.backups.work import Context, Work, aside, at_work, size
from workers.insisting import insist
from workers.installs.releases import remove_tree
from workers.lines import Offer
from workers.log import log
from workers.run import Ending

#: The command after a backup has this long, at most, once the backup was cancelled.
CLEAR_UP_S = 45.0
#: Of a sampled drill so many files are restored at least, where there are so many.
LEAST_FILES = 10


# ---- run ------------------------------------------------------------------------------------------


async def _run(work: Work) -> str:
    backup, store = work.backup, work.store
    if backup.node != work.supervisor.name:
        raise Conflict(f"Backup job {backup.name!r} is of node {backup.node}.")
    known, _ = await insist(lambda: backups.records(store, backup.id))
    if any(each.id == work.offer.job_id and each.snapshot for each in known):
        return "It was done by an earlier attempt."
    work.context.step("ready")
    stored = await work.engine.ready()
    if stored - {each.snapshot for each in known} and await _adopted(work, known):
        return "It was done by an earlier attempt."
    snapshot, proof = await _snapshot(work)
    summary = (
        f"{size(snapshot.size_bytes)} in {snapshot.files} files, {size(snapshot.added_bytes)} of them new."
    )
    if snapshot.unread_count:
        summary += f" {snapshot.unread_count} files could not be read, such as {snapshot.unread[0]}."
    await work.report(
        lambda holder: reports.recorded(
            store.seal, holder, work.held, backup.id, work.offer.job_id, proof, summary=summary,
            warning=summary if snapshot.unread_count else "",
        )
    )  # fmt: skip
    await _retain(work)
    return summary


async def _adopted(work: Work, known: list[Record]) -> bool:
    """Make records of snapshots that are whole and that no attempt lived to tell of; answers whether ours is one."""
    told = {each.snapshot for each in known}
    ours = False
    for each in await work.engine.snapshots():
        record_id = next((tag[7:] for tag in each.get("tags") or () if tag.startswith("record=")), "")
        if each["id"] in told or not RECORD_ID.fullmatch(record_id):
            continue
        size_bytes, files = await work.engine.size(each["id"])
        at_ms = _ms(each["time"])
        proof = _proof(work, at_ms, [Found(path, "path", Path(path)) for path in each["paths"]]) | {
            "snapshot": each["id"], "digest": each["tree"], "size_bytes": size_bytes, "added_bytes": 0, "files": files,
            "ended_ms": at_ms, "sources": _sources_of(each),
        }  # fmt: skip
        mine = record_id == work.offer.job_id
        ours = ours or mine
        work.context.say(f"finds the snapshot of an earlier run, {each['short_id']}")
        await _record(work, record_id, proof, adopted=not mine)
    return ours


async def _record(work: Work, record_id: str, proof: Mapping[str, Any], *, adopted: bool) -> None:
    await work.report(
        lambda holder: reports.recorded(
            work.store.seal, holder, work.held, work.backup.id, record_id, proof,
            summary=f"{size(proof['size_bytes'])} in {proof['files']} files.", adopted=adopted,
        )
    )  # fmt: skip


def _ms(time: str) -> int:
    """Return a time as the engine writes it, by the node's own clock: `2026-11-22T10:00:00.123456789+01:00`."""
    from datetime import datetime  # noqa: PLC0415  nothing else here needs it

    return int(datetime.fromisoformat(time).timestamp() * 1000)


def _sources_of(snapshot: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the sources that a snapshot tells of by its tags, in the order of its paths."""
    told = [tag[7:].split("=", 1) for tag in snapshot.get("tags") or () if tag.startswith("source=")]
    named = {path: (kind, name) for kind, rest in told for name, _, path in [rest.rpartition("\t")]}
    return [
        {"name": named.get(path, ("path", path))[1], "type": named.get(path, ("path", path))[0], "path": path}
        for path in snapshot["paths"]
    ]


def _proof(work: Work, started_ms: int, found: list[Found]) -> dict[str, Any]:
    return {
        "started_ms": started_ms, "node": work.supervisor.name, "engine": work.engine.name,
        "sources": [each.told for each in found], "prefix": work.backup.prefix,
    }  # fmt: skip


async def _snapshot(work: Work) -> tuple[Snapshot, dict[str, Any]]:
    """Run the command before, make the dumps and the snapshot, and run the command after in any case."""
    backup, say = work.backup, work.context.say
    hooks = backup.hooks(work.store.seal)
    started_ms = work.store.now_ms()
    scratch = await work.fresh_scratch()
    told = {"HOSTLER_BACKUP_ID": backup.id, "HOSTLER_BACKUP_NAME": backup.name}
    outcome = "failed"
    try:
        if command := hooks.get("pre"):
            work.context.step("pre")
            await sources.hook(
                work.programs, command, "the command before", directory=scratch, say=say, **told
            )
        found = await _found(work, scratch, hooks.get("secrets", {}))
        work.context.step("backup")
        snapshot = await work.engine.backup(
            [each.path for each in found], node=work.supervisor.name, tags=_tags(work, found),
            excludes=backup.excludes, progress=work.progress,
        )  # fmt: skip
        outcome = "completed"
    finally:
        if command := hooks.get("post"):
            work.context.step("post")
            told["HOSTLER_BACKUP_STATE"] = outcome
            after = sources.hook(
                work.programs, command, "the command after", directory=scratch, say=say, **told
            )
            try:
                await aside(after, CLEAR_UP_S if work.context.why_stopped else float(backup.timeout_s))
            except CommandFailed as error:  # what there is to keep is kept
                say(str(error))
    proof = _proof(work, started_ms, found) | {
        "snapshot": snapshot.id, "digest": snapshot.tree, "ended_ms": work.store.now_ms(),
        "size_bytes": snapshot.size_bytes, "added_bytes": snapshot.added_bytes, "files": snapshot.files,
    }  # fmt: skip
    return snapshot, proof


def _tags(work: Work, found: list[Found]) -> list[str]:
    """Return what a snapshot says of itself, from which it can be found again without Redis; a tag has no comma."""
    tags = ["hostler", f"record={work.offer.job_id}"]
    return tags + [
        f"source={each.type}={each.name}\t{each.path}"
        for each in found
        if "," not in f"{each.name}{each.path}"
    ]


async def _found(work: Work, scratch: Path, secrets: Mapping[str, str]) -> list[Found]:
    """Return where everything lies that shall be kept; dumps are made first. Raises NotFound, CommandFailed."""
    found = []
    for source in work.backup.volumes:
        if source["type"] in {"path", "app", "volume"}:
            each = await sources.located(source, work.supervisor, work.programs, work.directory)
            if not await asyncio.to_thread(each.path.exists):
                raise NotFound(f"There is no {each.path} on this node, which {each.name!r} means.")
            found.append(each)
            continue
        name = str(source["name"])
        dumps = work.scratch / "dumps"
        await asyncio.to_thread(dumps.mkdir, 0o700, False, True)
        path = await sources.dumped(source, secrets.get(name, ""), work.programs, dumps, work.context.say)
        found.append(Found(name, str(source["type"]), path))
    return found


async def _retain(work: Work) -> None:
    """Forget records that are kept no longer, then their data. What cannot be done now is done after the next run."""
    store, backup = work.store, work.backup
    try:
        known, _ = await insist(lambda: backups.records(store, backup.id))
        gone = backups.retention.expired(known, backup.retention, backup.timezone)
        if gone:
            work.context.step("retain")
            # the record goes before its data do: none is ever listed that has none
            await work.report(lambda holder: reports.forgotten(holder, work.held, [each.id for each in gone]))
        snapshots = [each.snapshot for each in gone if each.snapshot]
        if snapshots:
            work.context.say(f"removes {len(snapshots)} records that are kept no longer")
            await work.alone(lambda: work.engine.forget(snapshots))
    except (Stale, Unregistered):
        raise
    except HostlerError as error:
        work.context.say(f"could not remove old records: {error}")


# ---- verify ---------------------------------------------------------------------------------------


async def _verify(work: Work) -> str:
    record = await _record_of(work, str(work.offer.spec["record"]))
    # a sample that happens to miss the damage must not make a corrupt record good again
    share = float(work.offer.spec.get("share", 1.0)) if record.good else 1.0
    work.context.step("verify")
    error = await _checked(work, record, share)
    await work.report(lambda holder: reports.checked(holder, work.held, record.id, share=share, error=error))
    if error is not None:
        raise Corrupt(f"Record {record.id} is corrupt: {error}")
    return "All of it was read back, decrypted and hashed." if share >= 1 else f"{share:.0%} was read back."


async def _told_corrupt(work: Work, record: Record, share: float, error: str) -> None:
    await work.report(lambda holder: reports.checked(holder, work.held, record.id, share=share, error=error))


async def _checked(work: Work, record: Record, share: float) -> str | None:
    """Return what is wrong with a record, or None. Raises what keeps it from being told."""
    stored = await work.store.objects.keys(f"{work.engine.prefix}/snapshots/{record.snapshot}")
    if not stored:
        return "Its snapshot is gone from the object store."
    try:
        await work.engine.check(share)
    except Corrupt as found:
        work.context.say(f"{found} Reads this record alone, to tell whether it is hit.")
        try:
            async for _ in work.engine.archive(record.snapshot, cached=False):
                pass
        except Corrupt as error:
            return str(error)
        except EngineFailed as error:
            return f"{found} {error}"
        work.context.say("This record is whole; the damage is in others.")
    return None


async def _record_of(work: Work, record_id: str) -> Record:
    record = await insist(lambda: backups.record(work.store, work.backup.id, record_id))
    if record.state is RecordState.FAILED:
        raise Conflict(f"Record {record_id!r} is of a run that failed; it has no data.")
    return record


# ---- restore --------------------------------------------------------------------------------------


async def _restore(work: Work) -> str:
    record = await _record_of(work, str(work.offer.spec["record"]))
    if not record.good:
        raise Conflict(f"Record {record.id!r} is corrupt: {record.error}")
    spec = work.offer.spec
    include = [str(each) for each in spec.get("include") or ()]
    if spec.get("dry_run"):
        return await _listed(work, record, include)
    work.context.step("restore")
    try:
        target = await restored(work, record, spec.get("target"), include)
    except Corrupt as error:
        await _told_corrupt(work, record, 0.0, str(error))
        raise
    await work.report(lambda holder: reports.restored(holder, work.held, record.id, target))
    return f"Restored to {target}."


async def _listed(work: Work, record: Record, include: list[str]) -> str:
    """List in the log what would be restored."""
    count = size_bytes = 0
    async for entry in work.engine.entries(record.snapshot):
        path = str(entry["path"])
        if include and not any(path == each or path.startswith(f"{each}/") for each in include):
            continue
        count += 1
        size_bytes += int(entry.get("size", 0))
        work.context.say(f"{entry.get('type', '?'):8} {entry.get('size', 0):>12} {path}")
    return f"{count} entries, {size(size_bytes)}, would be restored."


# ---- drill ----------------------------------------------------------------------------------------


async def _drill(work: Work) -> str:
    backup = work.backup
    record = await insist(lambda: backups.newest_good(work.store, backup.id))
    if record is None:
        raise NotFound("There is no record that could be restored.")
    share = backup.drill.sample if backup.drill else 1.0
    include = await _sample(work, record, share) if share < 1 else []
    scratch = await work.fresh_scratch()
    work.room_for(int(record.proof["size_bytes"] * share), scratch)
    work.context.step("restore")
    try:
        await work.engine.restore(
            record.snapshot, scratch, include=include, verify=True, progress=work.steadily(record)
        )
    except Corrupt as error:
        await _told_corrupt(work, record, share, str(error))
        raise
    if backup.drill and backup.drill.command:
        work.context.step("check")
        kept = record.proof["sources"]
        within = scratch / kept[0]["path"].lstrip("/") if len(kept) == 1 else scratch
        await sources.hook(
            work.programs, backup.drill.command, "the check of the drill", say=work.context.say,
            directory=within if within.is_dir() else within.parent, HOSTLER_RESTORED=str(within),
            HOSTLER_BACKUP_ID=backup.id, HOSTLER_RECORD_ID=record.id,
        )  # fmt: skip
    await asyncio.to_thread(remove_tree, scratch)
    await work.report(lambda holder: reports.proven(holder, work.held, record.id))
    return f"Record {record.id} was restored and found right."


async def _sample(work: Work, record: Record, share: float) -> list[str]:
    """Return a share of a record's files, by chance."""
    files = [
        str(entry["path"])
        async for entry in work.engine.entries(record.snapshot)
        if entry.get("type") == "file"
    ]
    many = min(len(files), max(LEAST_FILES, int(len(files) * share)), 2000)
    work.context.say(f"restores {many} of {len(files)} files")
    return random.sample(files, many)


# ---- what all of them share -----------------------------------------------------------------------

_Do = Callable[[Work], Awaitable[str]]


def _task(do: _Do) -> Callable[[Offer, Context], Awaitable[Ending]]:
    async def task(offer: Offer, context: Context) -> Ending:
        try:
            async with at_work(offer, context) as work:
                context.say(await do(work))
                return Ending("completed")
        except (Stale, Unregistered):  # it is another's by now
            return Ending("released")
        except Unavailable as error:  # tried again after a while
            return _failed(context, error, "exit_code")
        except Corrupt as error:
            return _failed(context, error, "integrity")
        except (HostlerError, OSError) as error:
            return _failed(context, error, "invalid")

    return task


def _failed(context: Context, error: Exception, reason: str) -> Ending:
    sentence = str(error)
    context.say(sentence)
    log.warning("a backup's job failed", extra={"why": sentence})
    return Ending("failed", reason, 1 if reason == "exit_code" else None, {"message": sentence[:1000]})


TASKS: Mapping[str, Callable[[Offer, Any], Awaitable[Ending]]] = {
    "backup.run": _task(_run),
    "backup.restore": _task(_restore),
    "backup.verify": _task(_verify),
    "backup.drill": _task(_drill),
}
