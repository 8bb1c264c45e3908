"""Restores: a record put back where it was, or somewhere else, all of it or nothing."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

import orjson

from storage.backups import Record
from storage.errors import Conflict, Invalid, NotFound
from workers.backups import placing, sources
from workers.backups.placing import Move
from workers.backups.sources import Found
from workers.backups.work import Work
from workers.installs.updating import JournalFile
from workers.log import log
from workers.supervisor.places import write_whole
from workers.supervisor.users import give
from workers.threads import to_the_end

#: In a backup's directory: the last restore that has put everything in its place, and where.
_NOTE = "restored.json"


async def restored(work: Work, record: Record, target: str | None, include: Sequence[str]) -> str:
    """Restore a record, and answer where to: below `target`, or each source to where it belongs on this node.

    What an earlier attempt of the job has put in its place is not put there again, over what has changed since.
    Raises Corrupt, Conflict, NotFound, Invalid, OSError; then everything is as it was.
    """
    if (where := await asyncio.to_thread(_put_before, work)) is not None:
        work.context.say("It was put in its place by an earlier attempt.")
        return where
    kept = [Found(each["name"], each["type"], Path(each["path"])) for each in record.proof["sources"]]
    _check_include(kept, include)
    if target is not None:
        return await _to_target(work, record, kept, Path(target), include)
    places = await _places(work, kept)
    shown = ", ".join(str(place) for _, place in places)
    by_hand = {each.name for each in kept} - {each.name for each, _ in places}
    if by_hand:
        work.context.say(
            f"left out, since dumps are not put back by themselves: {', '.join(sorted(by_hand))}"
        )
    if not places:
        raise Invalid("The record holds dumps alone; give a target directory for their files.")
    wanted = [Path(path) for path in include] or [each.path for each, _ in places]
    async with contextlib.AsyncExitStack() as stack:
        # one place for everything on each file system, so that every exchange is a rename
        staged: list[Move] = []
        for number, (each, place) in enumerate(places):
            parts = _outermost(path for path in wanted if path.is_relative_to(each.path))
            if not parts:
                continue
            own = work.directory / f"staging-{number}"
            here = stack.enter_context(placing.staging(place, f"{work.backup.id}-{number}", own))
            work.room_for(int(record.proof["size_bytes"]), here)
            await work.engine.restore(
                record.snapshot,
                here,
                include=list(map(str, parts)),
                verify=True,
                progress=work.steadily(record),
            )
            staged += [_move(here, each, place, path) for path in parts]
        await _put(work, places, staged, shown)
    return shown


async def _put(work: Work, places: Sequence[tuple[Found, Path]], staged: Sequence[Move], shown: str) -> None:
    """Exchange what is staged with what is there, while the apps whose data it is stand still."""
    for move in staged:
        if not await asyncio.to_thread(placing.is_there, move.staged):
            raise NotFound(f"The record has nothing that belongs at {move.target}.")
    async with contextlib.AsyncExitStack() as still:
        # in the order of their names, so that two restores never wait for one another
        for each, place in sorted(places, key=lambda found: found[0].name):
            if each.type == "app":
                app = each.name.removeprefix("app:")
                await still.enter_async_context(_alone_with(work, app))
                await still.enter_async_context(work.supervisor.held(app))
                for move in staged:
                    if move.target.is_relative_to(place):
                        await asyncio.to_thread(_own, move.staged, work.supervisor.user(app))
        await _exchange(work, staged, shown)


async def _exchange(work: Work, moves: Sequence[Move], shown: str) -> None:
    """Put all in its place, and note that this job has: until it is told of, the attempt may die."""
    work.context.step("exchange")

    def put() -> None:
        placing.put(moves)
        note = orjson.dumps({"job": work.offer.job_id, "where": shown})
        try:
            write_whole(work.directory / _NOTE, note)
        except OSError as error:  # what was restored is
            log.warning("a restore that is done could not be noted", extra={"why": str(error)})

    await to_the_end(put)


def _put_before(work: Work) -> str | None:
    """Return where an earlier attempt of this job has put everything; None when none has."""
    try:
        noted = orjson.loads((work.directory / _NOTE).read_bytes())
        return str(noted["where"]) if noted["job"] == work.offer.job_id else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


@contextlib.asynccontextmanager
async def _alone_with(work: Work, app: str) -> AsyncIterator[None]:
    """Have no other job work on an app's files meanwhile. Raises NotFound, Conflict, where they cannot be exchanged."""
    places = work.supervisor.places(app)
    lock = places.lock
    if lock.locked():
        work.context.say(f"waits for the job that works on app {app!r}")
    async with lock:
        _check_app(app, places.root)
        if JournalFile(places).read() is not None:  # which may put back the data that it has kept
            raise Conflict(f"App {app!r} is being updated; restore its data once that is over.")
        yield


def _check_app(app: str, root: Path) -> None:
    if not root.is_dir():
        raise NotFound(
            f"There is no app:{app} on this node; install it first, or restore to another directory."
        )


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """Return paths without those that others bring along; exchanged once more they would bring back what was there."""
    found = dict.fromkeys(paths)
    return [path for path in found if not any(above in found for above in path.parents)]


def _own(staged: Path, uid: int | None) -> None:
    """Give restored data to the user that the app has on this node; those of this very node are its own."""
    if uid is None or staged.lstat().st_uid == uid:
        return
    if staged.is_dir() and not staged.is_symlink():
        give(staged, uid)
    else:
        os.chown(staged, uid, uid, follow_symlinks=False)


def _move(here: Path, each: Found, place: Path, wanted: Path) -> Move:
    inside = wanted.relative_to(each.path)
    target = place / inside if inside.parts else place
    return Move(here / str(wanted).lstrip("/"), target, within=place.parent)


async def _to_target(
    work: Work, record: Record, kept: Sequence[Found], target: Path, include: Sequence[str]
) -> str:
    """Restore below a directory that is not there yet, or empty: one source as the directory itself."""
    if not await asyncio.to_thread(placing.empty_or_missing, target):
        raise Conflict(f"{target} is there and not empty; restore to another directory, or empty it.")
    own = work.directory / "staging"
    with placing.staging(target, work.backup.id, own) as here:
        within = here / "restored"
        within.mkdir(mode=0o700)
        work.room_for(int(record.proof["size_bytes"]), here)
        await work.engine.restore(
            record.snapshot, within, include=include, verify=True, progress=work.steadily(record)
        )
        found = within
        if len(kept) == 1:
            whole = within / str(kept[0].path).lstrip("/")
            if not await asyncio.to_thread(placing.is_there, whole):
                raise NotFound("The record has nothing of what is to be restored.")
            found = whole if whole.is_dir() and not whole.is_symlink() else whole.parent
        await _exchange(work, [Move(found, target)], str(target))
    return str(target)


async def _places(work: Work, kept: Sequence[Found]) -> list[tuple[Found, Path]]:
    """Return where each source belongs on this node; dumps belong nowhere. Raises NotFound, Conflict."""
    places = []
    for each in kept:
        if each.type == "path":
            source = {"type": "path", "path": str(each.path)}
        elif each.type in {"app", "volume"}:
            source = {"type": each.type, each.type: each.name.partition(":")[2]}
        else:
            continue
        there = await sources.located(source, work.supervisor, work.programs, work.directory)
        if each.type == "volume":
            await sources.check_unused(str(source["volume"]), work.programs, work.directory)
        if each.type == "app":
            _check_app(each.name.removeprefix("app:"), there.path.parent)
        places.append((each, there.path))
    return places


def _check_include(kept: Sequence[Found], include: Sequence[str]) -> None:
    for path in include:
        if not any(Path(path).is_relative_to(each.path) for each in kept):
            where = ", ".join(str(each.path) for each in kept)
            raise Invalid(f"include: {path} is not below {where}, which the record has.")
