"""The engine: restic, which finds chunks, encrypts, writes data before index before snapshot, checks and prunes.

One repository a backup job, in the object store under the job's own prefix. Its password is derived from the secret key
and is nowhere kept; it and the credentials of the object store go through the program's environment alone.
"""

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from settings import Settings, process_environment
from storage.errors import Conflict, HostlerError, NotConfigured, Unavailable
from storage.objects import Objects
from storage.seal import Seal
from workers.backups import unlinked
from workers.backups.process import Process, Programs
from workers.installs.programs import client_environment
from workers.threads import to_the_end

#: What the engine says when data are not what they were when they were written.
_CORRUPT = re.compile(
    r"ciphertext verification failed|invalid data returned|returned invalid hash|Pack ID does not match|hash mismatch"
    r"|wrong data returned|is damaged|Unmarshal: invalid|invalid character|repository contains errors"
    r"|not found in (?:index|repository)|pack \S+: does not exist|LoadIndex returned errors|unexpected EOF"
)
#: What it says of an object that is gone; it would go on asking for it for a quarter of an hour.
_GONE = re.compile(r"Load\(<(?:data|index|snapshot)/.*(?:key does not exist|NoSuchKey|not found|404)")
_WRONG_PASSWORD = "wrong password or no key found"  # noqa: S105  words of the engine

#: The engine reads an archive file by file, which costs a round trip each (65 s for 2000 files, 3 s with their packs at
#: hand), so packs are fetched ahead: so many at most, of some 16 MiB each, and while so much of the disk is left free.
AHEAD_PACKS, AHEAD_FREE_BYTES, PACK_BYTES = 256, 2 << 30, 160 << 20

#: How a run of the engine may tell how far it is: bytes done, bytes in all (0 = unknown).
Progress = Callable[[int, int], Awaitable[None]]


class Corrupt(HostlerError):
    """Data in the object store are not what was written."""

    code = "BACKUP_CORRUPT"


class EngineFailed(HostlerError):
    """The engine could not do what it was asked; the message says why."""

    code = "BACKUP_ENGINE_FAILED"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a backup has made. `unread` are the files that could not be read, the first few of them."""

    id: str
    tree: str
    size_bytes: int
    added_bytes: int
    files: int
    unread: tuple[str, ...] = ()
    unread_count: int = 0


@dataclass(slots=True)
class _Said:
    """What the engine has said of a backup so far."""

    summary: dict[str, Any] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


def binary() -> str | None:
    """Return where restic is on this machine, or None."""
    return shutil.which("restic")


def version() -> tuple[int, ...]:
    """Return the version of this machine's restic; () without one."""
    path = binary()
    return () if path is None else _version_of(path)


@cache
def _version_of(path: str) -> tuple[int, ...]:
    try:
        said = subprocess.run(  # noqa: S603  a program that was found on the PATH
            [path, "version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    found = re.match(r"restic (\d+)\.(\d+)\.(\d+)", said)
    return tuple(map(int, found.groups())) if found else ()


#: The first release that compresses, which a repository of ours expects.
OLDEST = (0, 14)


def described() -> str:
    """Return the engine as a worker tells of it, such as `restic 0.14.0`; empty without a usable one."""
    known = version()
    return f"restic {'.'.join(map(str, known))}" if known >= OLDEST else ""


def password_of(seal: Seal, backup_id: str) -> str:
    """Return the password of a backup job's repository: derived for it alone, the same each time."""
    return seal.key(f"backup repository {backup_id}").hex()


class Engine:
    """One repository, worked on for one job."""

    def __init__(
        self, settings: Settings, seal: Seal, objects: Objects, *, backup_id: str, prefix: str, programs: Programs,
        directory: Path, say: Callable[[str], None], bandwidth_limit: int | None = None,
    ) -> None:  # fmt: skip
        path, known = binary(), version()
        if path is None or known < OLDEST:
            raise NotConfigured(
                "This node has no restic of version 0.14 or later, which makes backups: install it (apt install "
                "restic, dnf install restic, brew install restic)."
            )
        self.name = f"restic {'.'.join(map(str, known))}"
        self.version = known
        self._binary, self._programs, self._say = path, programs, say
        self._objects, self.prefix, self.directory = objects, prefix, directory
        self._environment = _environment(settings, password_of(seal, backup_id), prefix, directory)
        self._limits: tuple[str, ...] = ()
        if bandwidth_limit is not None:
            each = max(1, bandwidth_limit // 1024)
            self._limits = (f"--limit-upload={each}", f"--limit-download={each}")

    # The repository

    async def ready(self) -> set[str]:
        """Make the repository unless it is there, take away the locks of attempts that died, answer its snapshots.

        To be called by whoever holds the job: nobody else works on the repository then.
        """
        keys = await self._objects.keys(f"{self.prefix}/config")
        if f"{self.prefix}/config" not in keys:
            await self._objects.ensure_bucket()
            await self._run("init", "--repository-version=2")
            return set()
        await self._objects.delete_prefix(f"{self.prefix}/locks/")
        listed = await self._objects.keys(f"{self.prefix}/snapshots/")
        return {key.rpartition("/")[2] for key in listed}

    async def snapshots(self) -> list[dict[str, Any]]:
        """Return what the engine knows of each snapshot."""
        found: list[dict[str, Any]] = orjson.loads(await self._run("snapshots", "--json", "--no-lock"))
        return found

    async def size(self, snapshot: str) -> tuple[int, int]:
        """Return how many bytes and files a snapshot restores to."""
        told = orjson.loads(await self._run("stats", "--json", "--no-lock", "--mode=restore-size", snapshot))
        return int(told["total_size"]), int(told["total_file_count"])

    async def forget(self, snapshots: Sequence[str]) -> None:
        """Remove snapshots, and the data that no other one needs. Nobody else may work on the repository."""
        for start in range(0, len(snapshots), 100):
            await self._run("forget", "--prune", *snapshots[start : start + 100])

    # One snapshot

    async def backup(
        self,
        paths: Sequence[Path],
        *,
        node: str,
        tags: Sequence[str],
        excludes: Sequence[str],
        progress: Progress,
    ) -> Snapshot:
        """Make a snapshot of `paths`. Raises EngineFailed, Corrupt."""
        arguments = ["backup", "--json", f"--host={node}", *(f"--tag={tag}" for tag in tags)]
        arguments += [f"--exclude={each}" for each in excludes]
        said = _Said()

        async def hear(line: bytes) -> None:
            with contextlib.suppress(ValueError):
                message = orjson.loads(line)
                if message.get("message_type") == "status":
                    await progress(int(message.get("bytes_done", 0)), int(message.get("total_bytes", 0)))
                elif message.get("message_type") == "summary":
                    said.summary = message

        def complain(line: str) -> bool:
            with contextlib.suppress(ValueError):
                message = orjson.loads(line)
                if message.get("message_type") == "error":
                    said.unread.append(str(message.get("item", "?")))
                    self._say(f"cannot read {message.get('item')}: {_why(message.get('error'))}")
                return True
            return False

        code = await self._talk(
            [*arguments, "--", *map(str, paths)], hear=hear, complain=complain, fine={0, 3}, reading=paths
        )
        if not said.summary:
            raise EngineFailed("restic ended without a snapshot.")
        if code == 3 and not said.unread:
            said.unread.append("?")
        [found] = orjson.loads(
            await self._run("snapshots", "--json", "--no-lock", said.summary["snapshot_id"])
        )
        return Snapshot(
            id=found["id"], tree=found["tree"], size_bytes=int(said.summary["total_bytes_processed"]),
            added_bytes=int(said.summary["data_added"]), files=int(said.summary["total_files_processed"]),
            unread=tuple(said.unread[:5]), unread_count=len(said.unread),
        )  # fmt: skip

    async def restore(
        self,
        snapshot: str,
        into: Path,
        *,
        include: Sequence[str] = (),
        verify: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Restore a snapshot below the directory `into`; with `verify`, read it back and compare. Raises Corrupt."""
        arguments = ["restore", "--no-lock", "--target", str(into), snapshot]
        arguments += [f"--include={pattern_of(each)}" for each in include]
        arguments += ["--verify"] if verify else []
        arguments += ["--sparse"] if self.version >= (0, 15) else []
        watching = None
        if progress is not None:
            watching = asyncio.get_running_loop().create_task(_measured(into, progress))
        try:
            await self._talk(arguments, hear=self._heard)
        finally:
            if watching is not None:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)

    async def _heard(self, line: bytes) -> None:
        if line.strip():
            self._say(line.decode("utf-8", "replace"))

    async def entries(self, snapshot: str) -> AsyncGenerator[dict[str, Any], None]:
        """Yield what is in a snapshot: path, type, size of each."""
        async with self._started("ls", "--json", "--no-lock", snapshot) as process:
            async with contextlib.aclosing(process.lines()) as lines:
                async for channel, line in lines:
                    self._mind(channel, line)
                    if channel == "o" and line.startswith(b"{"):
                        entry = orjson.loads(line)
                        if entry.get("struct_type") == "node":
                            yield entry
            self._judge(process, {0})

    async def archive(self, snapshot: str, *, cached: bool = True) -> AsyncGenerator[bytes, None]:
        """Yield a snapshot as a tar archive, trusting what was read before unless not `cached`.

        Raises Corrupt, EngineFailed, at its end if not before.
        """
        how = () if cached else ("--no-cache",)
        async with (
            self._fetching_ahead() if cached else contextlib.nullcontext(),
            self._started("dump", "--no-lock", "--archive=tar", *how, snapshot, "/") as process,
        ):
            async with contextlib.aclosing(process.output()) as pieces:
                async for channel, data in pieces:
                    if channel == "o":
                        yield data
                        continue
                    for line in data.splitlines():
                        process.tail.append(line.decode("utf-8", "replace"))
                        self._mind(channel, line)
            self._judge(process, {0})

    @contextlib.asynccontextmanager
    async def _fetching_ahead(self) -> AsyncGenerator[None, None]:
        """Have data lie here before they are asked for, where they are not too many, and not any more in the end."""
        placed: list[Path] = []
        fetching = asyncio.ensure_future(self._fetch_ahead(placed))
        try:
            yield
        finally:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)
            await asyncio.to_thread(_remove, placed)

    async def _fetch_ahead(self, placed: list[Path]) -> None:
        """Put packs whole into the engine's cache, where it looks before it asks for their files one by one."""
        with contextlib.suppress(HostlerError, OSError):  # then it asks one by one
            keys = await self._objects.keys(f"{self.prefix}/data/")
            if len(keys) > AHEAD_PACKS:
                return
            while (cache := _cache_in(self.directory)) is None:
                await asyncio.sleep(0.1)
            for key in keys:
                name = key.rpartition("/")[2]
                target = cache / "data" / name[:2] / name
                if target.exists():
                    continue
                if shutil.disk_usage(self.directory).free < AHEAD_FREE_BYTES:
                    return
                pack = await self._objects.get(key, limit_bytes=PACK_BYTES)
                placed.append(target)
                await to_the_end(_place, pack, self.directory / "tmp" / name, target)

    async def check(self, share: float) -> None:
        """Read a share of all the data (1: all) back from the object store, decrypt and hash them. Raises Corrupt."""
        how = ["--read-data"] if share >= 1 else [f"--read-data-subset={max(0.01, share * 100):.2f}%"]
        # without --with-cache it trusts nothing that was read before
        await self._run("check", "--no-lock", *how)

    # Running it

    async def _run(self, *arguments: str) -> bytes:
        """Run it to its end, and return what it printed."""
        printed: list[bytes] = []

        async def hear(line: bytes) -> None:
            printed.append(line)

        await self._talk(arguments, hear=hear)
        return b"\n".join(printed)

    async def _talk(
        self, arguments: Sequence[str], *, hear: Callable[[bytes], Awaitable[None]],
        complain: Callable[[str], bool] = lambda _: False, fine: set[int] | None = None,
        reading: Sequence[Path] = (),
    ) -> int:  # fmt: skip
        async with self._started(*arguments, reading=reading) as process:
            async with contextlib.aclosing(process.lines()) as lines:
                async for channel, line in lines:
                    self._mind(channel, line)
                    if channel == "o":
                        await hear(line)
                    elif line.strip() and not complain(line.decode("utf-8", "replace")):
                        self._say(f"restic: {line.decode('utf-8', 'replace')}")
            return self._judge(process, fine or {0})

    @contextlib.asynccontextmanager
    async def _started(self, *arguments: str, reading: Sequence[Path] = ()) -> AsyncGenerator[Process, None]:
        argv = [self._binary, "-o", "s3.bucket-lookup=path", *self._limits, *arguments]
        if sys.platform == "linux":  # what others may write to must not lead us elsewhere while we read it
            held = [
                str(each) for each in reading if each.is_dir() and not each.is_symlink() and each.parts[1:]
            ]
            argv = [sys.executable, "-I", unlinked.__file__, *held, "--", *argv] if held else argv
        await asyncio.to_thread(_make_directories, self.directory)
        async with self._programs.started(
            argv, directory=self.directory, environment=self._environment
        ) as process:
            yield process

    def _mind(self, channel: str, line: bytes) -> None:
        """Raise Corrupt at once where the engine would go on asking for what is gone."""
        if channel == "e" and _GONE.search(line.decode("utf-8", "replace")):
            raise Corrupt("An object of the repository is gone from the object store.")

    def _judge(self, process: Process, fine: set[int]) -> int:
        """Return how the engine ended. Raises Corrupt, Unavailable, EngineFailed, Conflict."""
        outcome = process.outcome()
        if outcome.exit_code in fine:
            return int(outcome.exit_code or 0)
        said = "\n".join(process.tail)
        if _WRONG_PASSWORD in said:
            raise Conflict(
                "The repository was made under another HOSTLER_SECRET_KEY; its data can only be read with that one."
            )
        if found := _CORRUPT.search(said):
            line = next((each for each in process.tail if found.group() in each), found.group())
            raise Corrupt(f"The repository is damaged: {line.strip()[:300]}")
        last = next((each for each in reversed(process.tail) if each.strip()), "")
        if re.search(r"dial tcp|connection re|timeout|EOF|server misbehaving|503|5\d\d ", said):
            raise Unavailable(f"The object store cannot be reached: {last.strip()[:300]}")
        how = f"code {outcome.exit_code}" if outcome.signal is None else f"signal {outcome.signal}"
        raise EngineFailed(f"restic ended with {how}: {last.strip()[:500] or 'it said nothing'}")


def _cache_in(directory: Path) -> Path | None:
    """Return the engine's cache of the one repository that is worked on here, once there is one."""
    found = (directory / "cache").iterdir() if (directory / "cache").is_dir() else ()
    return next((each for each in found if re.fullmatch(r"[0-9a-f]{64}", each.name)), None)


def _place(data: bytes, staged: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    staged.write_bytes(data)
    staged.replace(target)


def _remove(paths: Sequence[Path]) -> None:
    for each in paths:
        with contextlib.suppress(OSError):
            each.unlink()


def _make_directories(directory: Path) -> None:
    for each in (directory, directory / "cache", directory / "tmp"):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.utime(directory)  # somebody is at work here: nothing that may be forgotten


def _environment(settings: Settings, password: str, prefix: str, directory: Path) -> dict[str, str]:
    endpoint = settings.s3_endpoint_url or f"https://s3.{settings.s3_region}.amazonaws.com"
    environ = process_environment()
    given = client_environment(environ)
    if settings.s3_access_key_id and settings.s3_secret_access_key:
        given |= {
            "AWS_ACCESS_KEY_ID": settings.s3_access_key_id,
            "AWS_SECRET_ACCESS_KEY": settings.s3_secret_access_key,
        }
    else:  # a role of the machine, or a file of credentials
        given |= {name: value for name, value in environ.items() if name.startswith("AWS_")}
    return {
        **given,
        "AWS_DEFAULT_REGION": settings.s3_region,
        "RESTIC_REPOSITORY": f"s3:{endpoint}/{settings.s3_bucket}/{prefix}",
        "RESTIC_PASSWORD": password,
        "RESTIC_CACHE_DIR": str(directory / "cache"),
        "TMPDIR": str(directory / "tmp"),
        "RESTIC_PROGRESS_FPS": "1",
    }


def pattern_of(path: str) -> str:
    """Return a path as the engine's patterns spell it: none of its characters means anything."""
    return re.sub(r"([\\*?\[\]])", r"\\\1", path)


def _why(error: Any) -> str:
    if isinstance(error, dict):
        return str(error.get("message") or error.get("Err") or error)
    return str(error)


async def _measured(into: Path, progress: Progress) -> None:
    """Tell how much has been restored, for as long as it grows."""
    while True:
        await asyncio.sleep(2)
        with contextlib.suppress(OSError, HostlerError):
            await progress(await asyncio.to_thread(_size_of, into), 0)


def _size_of(directory: Path) -> int:
    total = 0
    for _, _, files, fd in os.fwalk(directory):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.stat(name, dir_fd=fd, follow_symlinks=False).st_size
    return total
