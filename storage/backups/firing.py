"""What the leader does for backups because of time: fire what is due, say what is overdue, delete what was removed."""

import logging
from typing import Any

from storage import schedules
from storage.backups import times
from storage.backups.changes import GONE, AlreadyFired, Busy, _Changed, accept, node_with_engine
from storage.backups.records import Backup, every, get, newest_good
from storage.calls import command, script, text
from storage.errors import Conflict, HostlerError, NotFound
from storage.records import opened
from storage.schedules import Misfire
from storage.seal import Forged
from storage.store import Store

log = logging.getLogger("hostler.storage")

ACTOR = "system:backups"


async def fire_due(store: Store, *, most: int) -> int:
    """Fire the runs and drills that are due; answers how many were decided. Any number may do it at once."""
    now_ms: int = await store.call(command("TIME", read=_ms))  # by the clock that all share
    due = await store.call(command("ZRANGEBYSCORE", "h:backups:due", "-inf", now_ms, "LIMIT", 0, most))
    decided = 0
    for member in due:
        backup_id, _, kind = text(member).partition(" ")
        try:
            backup = await get(store, backup_id)
        except (NotFound, Forged):
            await store.call(command("ZREM", "h:backups:due", member))
            continue
        try:
            decided += await _fire(store, backup, kind or "run", now_ms)
        except (AlreadyFired, _Changed):  # another one did, or it is read anew the next time
            continue
        except HostlerError as error:
            log.error("cannot fire a backup", extra={"backup": backup_id, "why": str(error)})
    return decided


def _ms(reply: list[bytes]) -> int:
    return int(reply[0]) * 1000 + int(reply[1]) // 1000


async def _fire(store: Store, backup: Backup, kind: str, now_ms: int) -> int:
    drill = kind == "drill"
    at_ms = backup.drill_next_ms if drill else backup.next_ms
    cron = (backup.drill.schedule if backup.drill else None) if drill else backup.schedule
    if at_ms is None or at_ms > now_ms:  # it was changed, or fired by another one, since it was looked for
        await store.call(script("backup_due", backup.id, kind))
        return 0
    missed = now_ms - at_ms > schedules.MISFIRE_S * 1000
    from_ms = at_ms if not missed or backup.misfire is Misfire.ALL else now_ms
    following = times.after(backup, cron, from_ms)
    if missed and backup.misfire is Misfire.SKIP:
        return await _pass(store, backup, kind, at_ms, following, "")
    if drill and await newest_good(store, backup.id) is None:
        return await _pass(
            store, backup, kind, at_ms, following, "There is no record that could be restored."
        )
    try:
        await node_with_engine(store, backup.node, online=False)
        await accept(
            store, ACTOR, backup, kind, backup.node, {}, at_ms=at_ms,
            following_ms=following if isinstance(following, int) else None,
        )  # fmt: skip
    except (AlreadyFired, _Changed):
        raise
    except HostlerError as error:
        if isinstance(error, Busy) and missed and backup.misfire is Misfire.ALL:
            return 0  # one after the other
        if not isinstance(error, Conflict):
            log.error("a backup is refused", extra={"backup": backup.id, "why": str(error)})
        return await _pass(store, backup, kind, at_ms, following, str(error))
    return 1


async def _pass(  # noqa: PLR0917  the words of the step
    store: Store, backup: Backup, kind: str, at_ms: int, following: Any, sentence: str
) -> int:
    passed: int = await store.call(script("backup_pass", backup.id, kind, at_ms, following, sentence))
    return passed


async def look_after(store: Store) -> int:
    """Say which backups are overdue or unproven, each once; answers of how many something was said."""
    told = 0
    for backup in await every(store):
        for kind, find in (("overdue", times.overdue), ("unproven", times.unproven)):
            if sentence := find(backup, store.now_ms()):
                told += await store.call(script("backup_alarm", backup.id, kind, sentence))
    return told


async def recover(store: Store, backup_id: str) -> None:
    """Put a backup into its indexes, as its own record has it. Raises NotFound, Forged."""
    await get(store, backup_id)
    await store.call(script("recover_backup", backup_id))


async def sweep(store: Store) -> int:
    """Delete the data of backups that were removed long enough ago; answers how many objects. Safe to run twice."""
    gone = await store.call(
        command("ZRANGEBYSCORE", "h:backups:gone", "-inf", store.now_ms(), "LIMIT", 0, 10)
    )
    deleted = 0
    for raw in gone:
        try:
            told = opened(store.seal, GONE, GONE, raw)
            if told["until_ms"] > store.now_ms():
                raise Forged("It is to stay for longer.")
        except Forged as error:
            log.error("data of a backup are not deleted", extra={"why": str(error)})
        else:
            if not await store.call(
                command("EXISTS", f"h:backup:{told['id']}")
            ):  # a rebuild may bring one back
                deleted += await store.objects.delete_prefix(f"{told['prefix']}/")
        await store.call(command("ZREM", "h:backups:gone", raw))
    return deleted
